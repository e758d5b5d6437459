"""A PostgreSQL server with two small tables."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.process import ServerUnavailableError, free_port, identity_of, server_process

# PostgreSQL and SQLite both read it. The CLI's SQLite source trips over a foreign key without a name.
TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY, name text NOT NULL, email text);
CREATE TABLE orders (
    id integer PRIMARY KEY,
    customer_id integer,
    total numeric(10, 2),
    CONSTRAINT placed_by FOREIGN KEY (customer_id) REFERENCES customers (id)
);
INSERT INTO customers VALUES (1, 'Ada', 'ada@example.org'), (2, 'Grace', NULL);
INSERT INTO orders VALUES (1, 1, 12.50), (2, 2, 7.00);
"""


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server; `database` holds the tables `customers` and `orders` in its schema `public`."""

    host: str
    port: int
    user: str
    password: str
    database: str

    @property
    def uri(self) -> str:
        """The address with user and password, as libpq and SQLAlchemy read it."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{self.database}"


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL of our own that asks for a password (SCRAM), over TCP on 127.0.0.1 only.

    Raises:
        ServerUnavailableError: its programs are missing, or it does not start.
    """
    programs = _find_programs()
    server = Postgres("127.0.0.1", free_port(), "ingest", secrets.token_hex(12), "shop")
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "PGPASSWORD": server.password}
    identity = identity_of("nobody") if os.geteuid() == 0 else None  # it refuses to be run by root
    # Not under pytest's own folder: nobody but pytest's user may enter that one.
    with tempfile.TemporaryDirectory(prefix="test-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _initialise(programs, folder, server, env, identity)

        def ready() -> bool:
            where = ["-q", "-h", server.host, "-p", str(server.port), "-d", "postgres", "-U", server.user]
            return subprocess.run([programs / "pg_isready", *where], env=env, check=False).returncode == 0

        argv = [str(programs / "postgres"), "-D", "data", "-h", server.host, "-p", str(server.port)]
        argv += ["-k", "", "-F"]  # no Unix socket; no fsync
        with server_process(
            argv, ready=ready, log=folder / "log", env=env, stop_signal=signal.SIGINT, identity=identity
        ):
            _psql(programs, server, env, "postgres", f"CREATE DATABASE {server.database}")
            _psql(programs, server, env, server.database, TABLES)
            yield server


def _initialise(
    programs: Path, folder: Path, server: Postgres, env: Mapping[str, str], identity: Mapping[str, Any] | None
) -> None:
    password_file = folder / "password"
    password_file.write_text(server.password)
    if identity is not None:
        for path in (folder, password_file):
            os.chown(path, identity["user"], identity["group"])
    argv = [str(programs / "initdb"), "-D", "data", "-U", server.user, "--pwfile", str(password_file)]
    argv += ["-A", "scram-sha-256", "-E", "UTF8", "--no-sync"]
    made = subprocess.run(
        argv, env=env, cwd=folder, capture_output=True, text=True, check=False, **(identity or {})
    )
    password_file.unlink()
    if made.returncode:
        raise ServerUnavailableError(f"initdb ended with {made.returncode}:\n{made.stderr}")


def _psql(programs: Path, server: Postgres, env: Mapping[str, str], database: str, sql: str) -> None:
    argv = [str(programs / "psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-h", server.host]
    argv += ["-p", str(server.port), "-U", server.user, "-d", database]
    subprocess.run(argv, input=sql, text=True, env=env, check=True)


def _find_programs() -> Path:
    """The newest folder that has all of PostgreSQL's programs: Debian's own places, then PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders = sorted(debian, key=lambda folder: folder.parent.name.zfill(3), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    needed = ("initdb", "postgres", "pg_isready", "psql")
    for folder in folders:
        if all((folder / name).exists() for name in needed):
            return folder
    raise ServerUnavailableError("no PostgreSQL server here: `make setup-postgres`, or your package manager")
