"""A recipe: read, checked, and put on the CLI's standard input with its secrets (contract, sections 2, 5)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml
from packaging.version import Version

from executor.ingestion.references import SecretReferences, references, substitute

ENVELOPE_SINCE: Final = Version("1.5.0.15")  # the first CLI that takes secrets beside the recipe
MAX_RECIPE: Final = 1024 * 1024  # characters; no message of the queue holds more (contract, section 2)
# What reading YAML may take, a thousand times what people write: some tenths of a second. JSON is read in less.
MAX_YAML: Final = 256 * 1024  # characters
MAX_NODES: Final = 25_000  # values, aliases counted as often as they are used
MAX_DEPTH: Final = 100  # levels
MAX_INTEGER: Final = 1000  # characters of one in YAML: Python writes none of more than 4300 digits
_MAX_JSON_KEY: Final = (
    80  # characters; YAML takes no key over 1024, which an escaped one reaches 12 times sooner
)

_INTEGER: Final = "tag:yaml.org,2002:int"
_PLUGIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
_CLASS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*([.:][A-Za-z0-9_-]+)+", re.ASCII)
_ASTRAL: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\.")


class RecipeError(Exception):
    """The recipe can't be used; the message tells what and where, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as an object. `plugin` is the package extra of its source, None for a class of one's own."""

    source_type: str
    plugin: str | None
    document: dict[str, Any] = field(repr=False)

    def with_run_id(self, exec_id: str) -> "Recipe":
        """The recipe of one run: what it ingests carries the id of the execution request."""
        return replace(self, document=self.document | {"run_id": exec_id})

    @property
    def references(self) -> SecretReferences:
        """The names that its strings (not its keys) refer to."""
        required: set[str] = set()
        optional: set[str] = set()
        for text in _strings(self.document):
            if "$" in text:
                found = references(text)
                required |= found.required
                optional |= found.optional
        return SecretReferences(frozenset(required), frozenset(optional - required))

    def substituted(self, values: Mapping[str, str]) -> dict[str, Any]:
        """The document with these values in it, in such a form that they survive the CLI's own expansion.

        References to none of the names, such as a `${NAME:-default}` without a value, are left to the CLI.
        """
        return {key: _with_values(child, values) for key, child in self.document.items()}


def parse_recipe(text: str) -> Recipe:
    """Read a recipe, JSON (control characters in strings forgiven) or YAML.

    Raises:
        RecipeError: it is neither, or not a recipe.
    """
    if len(text) > MAX_RECIPE:
        raise RecipeError(
            f"the recipe is larger than {MAX_RECIPE:,} characters, the most that a message holds"
        )
    document = _parse(text.removeprefix("\ufeff"))
    if not isinstance(document, dict):
        raise RecipeError("the recipe must be an object with a `source`, not a list or a single value")
    source = document.get("source")
    if not isinstance(source, dict):
        raise RecipeError("the recipe needs a `source` with a `type` and its `config`")
    source_type = source.get("type")
    if not isinstance(source_type, str):
        raise RecipeError(
            "the recipe's `source` needs a `type`, the name of a DataHub source such as `postgres`"
        )
    if _PLUGIN.fullmatch(source_type):
        return Recipe(source_type, source_type, document)
    if _CLASS.fullmatch(source_type):
        return Recipe(source_type, None, document)
    raise RecipeError(
        "the recipe's `source.type` is no name of a source: letters, digits, `_` and `-`, as in `postgres`, "
        "or the path of a class, as in `package.module.Class`"
    )


def stdin_for(cli_version: Version | None, recipe: Recipe, secrets: Mapping[str, str]) -> bytes:
    """What the CLI reads from standard input, in ASCII.

    It is the envelope or, for an older CLI, the recipe with the values in it, which every CLI understands: so
    one of unknown version (None) gets it too. A very large recipe takes some seconds.
    """
    if cli_version is None or cli_version < ENVELOPE_SINCE:
        return _yaml_text(recipe.substituted(secrets)).encode("ascii")
    envelope = {"__recipe_yaml__": _yaml_text(recipe.document), "__secrets__": dict(secrets)}
    return json.dumps(envelope).encode("ascii")


def _parse(text: str) -> object:
    not_json = ""
    if text.lstrip().startswith("{"):
        try:
            document: object = json.loads(text, strict=False)
        except json.JSONDecodeError as error:
            reason = error.msg.partition(":")[0]
            not_json = f"is not valid JSON ({reason}, line {error.lineno}, column {error.colno}) and "
        except RecursionError:
            raise _too_deep() from None
        except ValueError:  # an integer of more than 4300 digits
            raise _too_long() from None
        else:
            _limit_depth(document)
            return document
    try:
        return _parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise RecipeError(f"the recipe {not_json}is not valid YAML{where}") from None
    except RecursionError:
        raise _too_deep() from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, TypeError):
        # PyYAML's reader for forbidden characters; its constructors for a date, a number or a tag that makes no
        # sense.
        raise RecipeError(
            f"the recipe {not_json}is not valid YAML: it holds a character that YAML forbids, or a date or "
            "number that is none"
        ) from None


def _parse_yaml(text: str) -> object:
    if len(text) > MAX_YAML:
        raise RecipeError(f"the recipe is larger than {MAX_YAML:,} characters: give it as JSON")
    loader = yaml.CSafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError("the recipe is empty")
        if _expanded_size(node, {}) > MAX_NODES:
            raise RecipeError(f"the recipe's YAML aliases expand to more than {MAX_NODES:,} values")
        document: object = loader.construct_document(node)
        return document
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, known: dict[yaml.Node, int], depth: int = 0) -> int:
    """How many nodes there are under a node when every alias is followed."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    if node.tag == _INTEGER and not (isinstance(node, yaml.ScalarNode) and len(node.value) <= MAX_INTEGER):
        raise _too_long()
    if node not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[node] = 1 + sum(_expanded_size(child, known, depth + 1) for child in children)
    return known[node]


def _limit_depth(node: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _limit_depth(child, depth + 1)


def _too_deep() -> RecipeError:
    return RecipeError(f"the recipe is nested more than {MAX_DEPTH} levels deep, or refers to itself")


def _too_long() -> RecipeError:
    return RecipeError("the recipe holds a number that is too long, or none where it says that there is one")


def _strings(node: object) -> Iterator[str]:
    """The string values, as the CLI finds them: in objects and lists."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


def _with_values(node: object, values: Mapping[str, str]) -> object:
    if isinstance(node, str):
        return substitute(node, values)
    if isinstance(node, dict):
        return {key: _with_values(child, values) for key, child in node.items()}
    if isinstance(node, list):
        return [_with_values(child, values) for child in node]
    return node


def _yaml_text(document: dict[str, Any]) -> str:
    """ASCII text that YAML, for which the CLI takes its input, reads as this document: JSON if possible."""
    if not _is_plain_json(document):
        return yaml.dump(document, Dumper=_WithoutAliases, sort_keys=False)
    # JSON writes a character beyond U+FFFF as two escapes, which YAML would read as two characters.
    return _ASTRAL.sub(_astral, json.dumps(document))


def _astral(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return escape[0]
    high, low = int(escape[1], 16), int(escape[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


def _is_plain_json(node: object) -> bool:
    """Whether JSON can say it, and YAML reads that as the same (`1e+16`, for one, would be a string)."""
    if isinstance(node, dict):
        return all(
            isinstance(key, str) and len(key) <= _MAX_JSON_KEY and _is_plain_json(child)
            for key, child in node.items()
        )
    if isinstance(node, list):
        return all(map(_is_plain_json, node))
    if isinstance(node, float):
        return re.fullmatch(r"-?\d+\.\d+", repr(node)) is not None
    return node is None or isinstance(node, str | int)


class _WithoutAliases(yaml.CSafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True
