"""Secrets are looked up in order, and a name found nowhere is told with the places asked."""

from collections.abc import Collection
from pathlib import Path

import pytest

from executor.ingestion.references import SecretReferences
from executor.ingestion.secrets import (
    EnvironmentSecretStore,
    FileSecretStore,
    SecretError,
    SecretStore,
    UnknownSecrets,
    resolve,
)


class RecordingStore:
    """A store in memory that remembers what it was asked for."""

    def __init__(self, name: str, values: dict[str, str]) -> None:
        self.name = name
        self.asked: list[list[str]] = []
        self._values = values

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        self.asked.append(list(names))
        return self._values


def refer(*required: str, optional: tuple[str, ...] = ()) -> SecretReferences:
    return SecretReferences(frozenset(required), frozenset(optional))


async def test_the_first_store_that_has_a_name_wins_and_the_next_are_asked_for_the_rest() -> None:
    first = RecordingStore("first", {"A": "1", "UNASKED": "x"})
    second = RecordingStore("second", {"A": "2", "B": "2", "C": "2"})
    third = RecordingStore("third", {})
    values = await resolve(refer("A", "B", optional=("C",)), [first, second, third])
    assert values == {"A": "1", "B": "2", "C": "2"}
    assert (first.asked, second.asked, third.asked) == ([["A", "B", "C"]], [["B", "C"]], [])


async def test_an_optional_name_found_nowhere_is_left_to_the_cli() -> None:
    assert await resolve(refer(optional=("A",)), [RecordingStore("only", {})]) == {}


async def test_required_names_found_nowhere_are_named_with_the_places_asked() -> None:
    stores: list[SecretStore] = [
        EnvironmentSecretStore({"A": "hunter2"}),
        RecordingStore("DataHub's secrets", {}),
    ]
    with pytest.raises(UnknownSecrets) as caught:
        await resolve(refer("A", "PG_PASSWORD", "B", optional=("D",)), stores)
    assert caught.value.names == ("B", "PG_PASSWORD")
    assert caught.value.stores == ("environment variables", "DataHub's secrets")
    message = str(caught.value)
    assert "B, PG_PASSWORD" in message
    assert "environment variables; DataHub's secrets" in message
    assert "hunter2" not in message


async def test_an_empty_value_counts_as_found() -> None:
    assert await resolve(refer("A"), [EnvironmentSecretStore({"A": ""})]) == {"A": ""}


async def test_files_are_read_with_one_line_end_less(tmp_path: Path) -> None:
    (tmp_path / "A").write_bytes(b"one\n")
    (tmp_path / "B.b-1").write_bytes("zwölf\n\n".encode())
    (tmp_path / "C").write_bytes(b"windows\r\n")
    store = FileSecretStore(tmp_path, 100)
    found = await store.lookup(["A", "B.b-1", "C", "MISSING"])
    assert found == {"A": "one", "B.b-1": "zwölf\n", "C": "windows"}
    assert str(tmp_path) in store.name


async def test_a_missing_folder_has_no_secrets(tmp_path: Path) -> None:
    assert await FileSecretStore(tmp_path / "none", 100).lookup(["A"]) == {}


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", ".", "..", "a/b", "", "a\0b", "x" * 300, "A\n"]
)
async def test_a_name_that_is_no_plain_file_name_is_not_looked_up(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("hunter2")
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "b").write_text("hunter2")
    assert await FileSecretStore(tmp_path / "in", 100).lookup([name]) == {}


async def test_links_inside_the_folder_are_followed_as_kubernetes_makes_them(tmp_path: Path) -> None:
    (tmp_path / "..2024_01_01").mkdir()
    (tmp_path / "..2024_01_01" / "A").write_text("value")
    (tmp_path / "..data").symlink_to("..2024_01_01")
    (tmp_path / "A").symlink_to("..data/A")
    assert await FileSecretStore(tmp_path, 100).lookup(["A", "..data"]) == {"A": "value"}


async def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "A").symlink_to("../token")
    with pytest.raises(SecretError, match="leads out of its folder"):
        await FileSecretStore(folder, 100).lookup(["A"])


async def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "A").symlink_to("A")
    with pytest.raises(SecretError, match=r"A can't be read"):
        await FileSecretStore(tmp_path, 100).lookup(["A"])


async def test_a_secret_may_be_as_large_as_the_limit_and_no_larger(tmp_path: Path) -> None:
    (tmp_path / "A").write_bytes(b"x" * 100)
    assert await FileSecretStore(tmp_path, 100).lookup(["A"]) == {"A": "x" * 100}
    with pytest.raises(SecretError, match=r"secret A is larger than 99 bytes.*FILE_SECRET_MAXLEN"):
        await FileSecretStore(tmp_path, 99).lookup(["A"])


async def test_a_secret_that_is_no_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "A").write_bytes(b"hunter2\xff")
    with pytest.raises(SecretError, match="not UTF-8") as caught:
        await FileSecretStore(tmp_path, 100).lookup(["A"])
    assert "hunter2" not in str(caught.value)
