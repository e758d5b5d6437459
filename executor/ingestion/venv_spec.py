"""What a run's venv must hold: the request's words, checked, and the key under which it is kept. Pure."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

BUNDLED = "bundled"
LATEST = "latest"
CLI = "acryl-datahub"

_NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})
_LAYOUT = 1  # raised when a venv of the same inputs would be built differently
_EXTRA_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")  # PEP 685
_TEMPLATE = re.compile(r"\$\{(\w+)\}")
_REQUIREMENT_SCHEMES = ("https", "git+https", "git+ssh")
_MUST = "it must be a requirement such as 'name', 'name[extra]>=1.2' or 'name @ https://…' (PEP 508)"
_ARCHIVES = (".whl", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")  # uv reads such a name as a path
_MASK = "****"
_SHORTEST_SECRET = 4  # characters; masking less would only make the log unreadable

# What of a request's environment reaches uv, besides the UV_* variables.
_NETWORK_VARIABLES = frozenset(
    name
    for upper in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NETRC",
    )
    for name in (upper, upper.lower())
)
# Where the operator's word is the only one: the cache is shared, the interpreter is ours.
_OPERATOR_VARIABLES = frozenset({"UV_CACHE_DIR", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR"})
# Those that change which files end up in a venv.
_CONTENT_VARIABLES = (
    "UV_BUILD_CONSTRAINT", "UV_CONFIG_FILE", "UV_CONSTRAINT", "UV_DEFAULT_INDEX", "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX", "UV_INDEX_STRATEGY",
    "UV_INDEX_URL", "UV_NO_BINARY", "UV_NO_BUILD", "UV_OVERRIDE", "UV_PRERELEASE", "UV_RESOLUTION",
    "UV_TORCH_BACKEND",
)  # fmt: skip


class VenvError(Exception):
    """A venv can't be had; the message says why and names the way out, without secrets."""


@dataclass(frozen=True)
class VenvSpec:
    """What goes into a venv.

    `version` is `bundled`, `latest`, a PEP 440 version or a wheel's https address. `extra_requirements` are
    fit to be shown; `expanded_requirements` have their `${NAME}` filled in and may hold secrets, as may the
    `environment` for uv. `secret_values` are to be masked in what uv prints.
    """

    version: str
    plugin: str | None
    extra_plugins: tuple[str, ...]
    extra_requirements: tuple[str, ...]
    expanded_requirements: tuple[str, ...] = field(repr=False)
    secret_values: tuple[str, ...] = field(repr=False)
    environment: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def extras(self) -> list[str]:
        """The extras of the CLI that it asks for, normalised."""
        return _extras(self)

    def cli_requirement(self, version: str, *, plugins: bool) -> str:
        """The requirement line for the CLI at `version` (a PEP 440 version or a wheel's address)."""
        names = _extras(self) if plugins else []
        extras = f"[{','.join(names)}]" if names else ""
        return f"{CLI}{extras} @ {version}" if is_wheel(version) else f"{CLI}{extras}=={version}"

    def mask(self, text: str) -> str:
        """`text` without the values that are secret."""
        for value in self.secret_values:
            text = text.replace(value, _MASK)
        return text


def is_wheel(version: str) -> bool:
    """Whether a normalised version is a wheel's address."""
    return version.startswith("https://")


def venv_spec(
    *,
    version: str | None,
    plugin: str | None,
    extra_plugins: Sequence[str],
    extra_requirements: Sequence[str],
    dependency_resolution_enabled: bool,
    environ: Mapping[str, str] = _NO_ENVIRONMENT,
) -> VenvSpec:
    """Check what a request asks for (contract, section 2).

    `environ` is the executor's environment with the request's `extra_env_vars` over it: `${NAME}` in a
    requirement is filled in from it, and its UV_* variables, proxies and certificates go to uv. A `plugin`
    that is the import path of a class (`my.module:Source`) needs no extra of the CLI.

    Raises:
        VenvError: Something is not what it must be, or may not run here.
    """
    normalised = _version(version, dependency_resolution_enabled)
    given = [item.strip() for item in extra_requirements]
    expanded = [_requirement(item, position, environ) for position, item in enumerate(given, 1)]
    environment = tuple(sorted((name, value) for name, value in environ.items() if _reaches_uv(name)))
    return VenvSpec(
        version=normalised,
        plugin=None if plugin is None else _plugin(plugin),
        extra_plugins=tuple(
            _extra(item, f"extra plugin {position}") for position, item in enumerate(extra_plugins, 1)
        ),
        extra_requirements=tuple(_mask_url_credentials(item) for item in given),
        expanded_requirements=tuple(expanded),
        secret_values=_secret_values(given, expanded, environ, environment),
        environment=environment,
    )


def venv_key(spec: VenvSpec, version: str, python: str, environ: Mapping[str, str]) -> str:
    """The name of the venv of `spec` at the concrete `version`: equal only where all that goes in is equal.

    `python` names the interpreter (version, platform, place), `environ` is what uv gets.
    """
    return _digest(version, venv_family(spec, python, environ))


def venv_family(spec: VenvSpec, python: str, environ: Mapping[str, str]) -> str:
    """What venvs that differ only in the CLI's version have in common."""
    return _digest(_LAYOUT, _extras(spec), spec.expanded_requirements, index_key(python, environ))


def index_key(python: str, environ: Mapping[str, str]) -> str:
    """What decides which versions of a package there are to choose from."""
    return _digest(python, {name: environ[name] for name in _CONTENT_VARIABLES if name in environ})


def _digest(*inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _extras(spec: VenvSpec) -> list[str]:
    main = [] if spec.plugin is None or _is_import_path(spec.plugin) else [spec.plugin]
    return sorted({canonicalize_name(name) for name in (*main, *spec.extra_plugins)})


def _version(version: str | None, resolution_enabled: bool) -> str:
    text = (version or "").strip()
    if not text:
        return LATEST if resolution_enabled else BUNDLED
    normalised = text.lower() if text.lower() in (BUNDLED, LATEST) else None
    if normalised is None:
        normalised = _wheel_address(text) if ":" in text or "/" in text else _release(text)
    if not resolution_enabled and normalised != BUNDLED:
        raise VenvError(
            f"version {normalised} can't run here: INGESTION_DEPENDENCY_RESOLUTION_ENABLED is false, so "
            f"nothing is installed at run time. Set the source's CLI version to '{BUNDLED}', or the variable "
            "to true."
        )
    return normalised


def _release(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise VenvError(
            f"version {text!r} is none: it must be '{BUNDLED}', '{LATEST}', a version of {CLI} such as 1.2.3 "
            "(no comparison sign), or the https address of a wheel."
        ) from None


def _wheel_address(text: str) -> str:
    if "@" in text:
        raise VenvError(
            "the version is a wheel's address with a user name or password in it, which would show in logs. "
            "Leave them out and give them by a .netrc file, a keyring, or UV_INDEX_<NAME>_USERNAME and "
            "UV_INDEX_<NAME>_PASSWORD."
        )
    url = _split(text)
    if url is None or url.scheme != "https" or not url.hostname or re.search(r"[\s$\\?#]", text):
        raise VenvError(
            "the version is an address, but not the https address of a wheel without a query, such as "
            f"https://host/{_wheel_name('1.2.3')}."
        )
    name = unquote(url.path.rpartition("/")[2])
    try:
        project, *_ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        project = None
    if project != CLI:
        raise VenvError(f"version {text!r} must end in a wheel of {CLI}, such as {_wheel_name('1.2.3')}.")
    return text


def _wheel_name(version: str) -> str:
    return f"{CLI.replace('-', '_')}-{version}-py3-none-any.whl"


def _plugin(text: str) -> str:
    if _is_import_path(text):
        return text
    return _extra(text, "the source type")


def _is_import_path(plugin: str) -> bool:
    return re.fullmatch(r"\w+(\.\w+)+(:\w+)?|\w+:\w+", plugin, re.ASCII) is not None


def _extra(text: str, what: str) -> str:
    name = text.strip()
    if _EXTRA_NAME.fullmatch(name) is None:
        raise VenvError(
            f"{what} is {text[:100]!r}: it must be the name of an extra of {CLI}, such as postgres (letters, "
            "digits, '-', '_' and '.'). Packages go into the extra pip requirements."
        )
    return name


def _requirement(item: str, position: int, environ: Mapping[str, str]) -> str:
    """`item` with its templates filled in, proven to be a requirement and nothing else."""
    what = f"extra requirement {position} ({_mask_url_credentials(item)[:200]!r})"
    missing = sorted({name for name in _TEMPLATE.findall(item) if name not in environ})
    if missing:
        raise VenvError(
            f"{what} uses {', '.join(f'${{{name}}}' for name in missing)}, which is not set: set it in the "
            "executor's environment or in the source's extra environment variables."
        )
    expanded = _TEMPLATE.sub(lambda match: environ[match[1]], item)
    if expanded.startswith("-"):
        raise VenvError(f"{what} is an option: {_MUST}. Index settings go into UV_* variables.")
    if not expanded.isprintable():
        raise VenvError(f"{what} holds a line break or another control character: {_MUST}, one an item.")
    try:
        requirement = Requirement(expanded)
    except InvalidRequirement:
        raise VenvError(f"{what} is no requirement: {_MUST}.") from None
    if requirement.url is None:
        if requirement.name.lower().endswith(_ARCHIVES):
            raise VenvError(f"{what} is a local file: {_MUST}.")
    else:
        _check_address(requirement.url, what)
        if "${" in item.partition("?")[2]:
            raise VenvError(
                f"{what} has a value of the environment in an address's query, which uv keeps on the disk: "
                "put it before an @ as user or password, or use a .netrc file."
            )
    return expanded


def _check_address(address: str, what: str) -> None:
    url = _split(address)
    if url is None or url.scheme not in _REQUIREMENT_SCHEMES or not url.hostname:
        raise VenvError(
            f"{what} names an address that is none of {', '.join(_REQUIREMENT_SCHEMES)}: {_MUST}; neither "
            "local paths nor plain http are taken."
        )


def _split(text: str) -> SplitResult | None:
    try:
        return urlsplit(text)
    except ValueError:
        return None


def _reaches_uv(name: str) -> bool:
    return (name.startswith("UV_") and name not in _OPERATOR_VARIABLES) or name in _NETWORK_VARIABLES


_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@?#]+(?=@)")


def _mask_url_credentials(text: str) -> str:
    """`text` with what stands before the @ of its addresses masked; templates stay, as they are no secret."""

    def masked(match: re.Match[str]) -> str:
        literal = _TEMPLATE.sub("", _secret_part(match[0]))
        return _MASK if literal not in ("", "git") else match[0]

    return _URL_CREDENTIALS.sub(masked, text)


def _secret_part(credentials: str) -> str:
    """The password, or the user name where it is all there is: that's how tokens are given."""
    user, _, password = credentials.partition(":")
    return password or user


def _secret_values(
    given: Iterable[str],
    expanded: Iterable[str],
    environ: Mapping[str, str],
    environment: Iterable[tuple[str, str]],
) -> tuple[str, ...]:
    values = {environ[name] for item in given for name in _TEMPLATE.findall(item)}
    texts = list(expanded)
    for name, value in environment:
        texts.append(value)
        if name.endswith(("_PASSWORD", "_TOKEN")):
            values.add(value)
    for text in texts:
        for credentials in _URL_CREDENTIALS.findall(text):
            secret = _secret_part(credentials)
            values.update((secret, unquote(secret)))
    # Longest first, so that a secret within another one leaves no rest of the longer.
    secrets = (value for value in values if len(value) >= _SHORTEST_SECRET)
    return tuple(sorted(secrets, key=lambda value: (-len(value), value)))
