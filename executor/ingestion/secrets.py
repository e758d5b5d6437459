"""Where the values of a recipe's `${NAME}` come from: stores, asked in order (contract, sections 1, 3, 5)."""

import re
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from executor.ingestion.references import SecretReferences
from executor.lack import reason

_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)


class SecretError(Exception):
    """A secret can't be had or used; the message names it, the reason and the way out, never the value."""


class UnknownSecrets(SecretError):  # noqa: N818 - it is the secrets that are unknown
    """Names that the recipe needs and no store has: `names`, and the `stores` that were asked."""

    def __init__(self, names: Collection[str], stores: Collection[str]) -> None:
        self.names = tuple(sorted(names))
        self.stores = tuple(stores)
        one = len(self.names) == 1
        super().__init__(
            f"the recipe needs {'a secret' if one else f'{len(self.names)} secrets'} found nowhere: "
            f"{', '.join(self.names)}. Looked in: {'; '.join(self.stores) or 'no store at all'}. Create "
            f"{'it' if one else 'them'} in one of these, correct the name, or give a default in the recipe, "
            "as in ${NAME:-default}"
        )


class SecretStore(Protocol):
    """A place that has secrets by name."""

    name: str
    """For people, in messages about where a secret was looked for."""

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        """The values of those names that it has.

        Raises:
            SecretError: it has one that can't be used, or can't be asked.
        """
        ...


class FileSecretStore:
    """Files in one folder, a secret each, as container platforms mount them; `maxlen` in bytes."""

    def __init__(self, basedir: Path, maxlen: int) -> None:
        self.name = f"files in {basedir}"
        self._basedir = basedir
        self._maxlen = maxlen

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        """The contents of the files of these names, without one line end at the end.

        Raises:
            SecretError: a file is too large, no UTF-8, not readable, or a link that leads out of the folder.
        """
        plain = [name for name in names if _FILE_NAME.fullmatch(name)]
        return await to_thread.run_sync(self._read_all, plain) if plain else {}

    def _read_all(self, names: Collection[str]) -> dict[str, str]:
        found = {name: self._read(self._basedir / name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, path: Path) -> str | None:
        try:
            target = path.resolve(strict=True)
            if not stat.S_ISREG(target.stat().st_mode):
                return None
            if not target.is_relative_to(self._basedir.resolve()):
                raise SecretError(f"the secret file {path} is a link that leads out of its folder")
            with target.open("rb") as file:
                data = file.read(self._maxlen + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
            why = reason(error) if isinstance(error, OSError) else "its links lead in a circle"
            raise SecretError(f"the secret file {path} can't be read: {why}") from None
        if len(data) > self._maxlen:
            raise SecretError(
                f"the secret {path.name} is larger than {self._maxlen:,} bytes: "
                "DATAHUB_EXECUTOR_FILE_SECRET_MAXLEN allows more"
            )
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise SecretError(f"the secret file {path} is not UTF-8 text: store it base64-encoded") from None
        return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


class EnvironmentSecretStore:
    """Environment variables, the service's own or those of a request."""

    def __init__(self, env: Mapping[str, str], name: str = "environment variables") -> None:
        self.name = name
        self._env = env

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        """The variables of these names that are set."""
        return {name: self._env[name] for name in names if name in self._env}


async def resolve(references: SecretReferences, stores: Sequence[SecretStore]) -> dict[str, str]:
    """Values by name; each store is asked only for what those before it lack.

    An optional name found nowhere is left out, for the CLI to put its default there.

    Raises:
        UnknownSecrets: a required name was found nowhere.
        SecretError: a store failed that was asked for a required name.
    """
    values: dict[str, str] = {}
    missing = references.required | references.optional
    for store in stores:
        if not missing:
            break
        try:
            found = await store.lookup(sorted(missing))
        except SecretError:
            if missing & references.required:
                raise
            continue  # what is left can do without
        values |= {name: value for name, value in found.items() if name in missing}
        missing -= values.keys()
    if unknown := missing & references.required:
        raise UnknownSecrets(unknown, [store.name for store in stores])
    return values
