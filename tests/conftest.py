"""Fixtures shared by all tests. A server starts when the first test asks for it, once per test session."""

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests import servers

if TYPE_CHECKING:
    from executor.local.datahub import DataHubStandIn

ROOT = Path(__file__).resolve().parent.parent
OURS_AND_AWS = ("AWS_", "DATAHUB_", "ECS_", "EXECUTOR_", "INGESTION_")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run on the event loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the developer's own AWS or DataHub settings reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(OURS_AND_AWS):
                patch.delenv(name)
        nowhere = tmp_path_factory.mktemp("aws")
        patch.setenv("AWS_CONFIG_FILE", str(nowhere / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere / "credentials"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def localstack_venv() -> Path:
    """The venv that LocalStack is in."""
    venv = Path(os.environ.get("TEST_LOCALSTACK_VENV", ROOT / ".cache" / "localstack"))
    if not (venv / "bin" / "python").exists():
        cannot_be_had(f"no LocalStack in {venv}: `make setup-tests` puts it there")
    return venv


@pytest.fixture(scope="session")
def localstack(
    localstack_venv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.LocalStack]:
    """LocalStack's SQS; each test makes its own queue with `await localstack.make_queue()`."""
    try:
        with servers.run_localstack(localstack_venv, tmp_path_factory.mktemp("localstack")) as server:
            yield server
    except servers.ServerUnavailableError as error:
        cannot_be_had(error)


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """A PostgreSQL server with two small tables, asking for a password."""
    try:
        with servers.run_postgres() as server:
            yield server
    except servers.ServerUnavailableError as error:
        cannot_be_had(error)


@pytest.fixture(scope="session")
def cli_venv() -> Path:
    """The venv of the real DataHub CLI, with its SQLAlchemy and PostgreSQL sources."""
    venv = Path(os.environ.get("TEST_CLI_VENV", ROOT / ".cache" / "cli"))
    if not (venv / "bin" / "datahub").exists():
        cannot_be_had(f"no DataHub CLI in {venv}: `make setup-tests` puts it there")
    return venv


@pytest.fixture
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether runs start warm; see BOTH_STARTS in tests/integration/service.py."""
    return bool(getattr(request, "param", False))


@pytest.fixture
async def stand_in() -> AsyncIterator["DataHubStandIn"]:
    """A DataHub of the test's own, empty, that asks for the token `t`."""
    from executor.local.datahub import stand_in

    async with stand_in(token="t") as datahub:
        yield datahub


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Path:
    """A SQLite file with the tables `customers` and `orders`."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(servers.TABLES)
    return path


def cannot_be_had(reason: object) -> NoReturn:
    """A machine of one's own may lack something; CI may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have this: {reason}", pytrace=False)
    pytest.skip(str(reason))
