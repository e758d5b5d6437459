"""The databases that are read: SQLite files and one PostgreSQL server's, with few tables and with many."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

from benchmarks.harness import Bench
from benchmarks.warm.ways import Job
from tests.servers import run_postgres

SIZES = {"SQLite": (2, 50, 200), "PostgreSQL": (10, 50, 200, 1000)}
TABLE = "CREATE TABLE t{:04} (id integer PRIMARY KEY, name text NOT NULL, at timestamp)"

# Run by the CLI's Python, which has a driver.
FILL_POSTGRES = """
import json, sys, psycopg2
server, databases = json.load(sys.stdin)
def execute(database, statements):
    connection = psycopg2.connect(**server, dbname=database)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()
for name, tables in databases.items():
    execute("postgres", [f"CREATE DATABASE {name}"])
    execute(name, tables)
"""


@contextmanager
def databases(bench: Bench) -> Iterator[dict[tuple[str, int], Job]]:
    """What reads each of them, by the database's name and the number of its tables.

    Raises:
        ServerUnavailableError: there is no PostgreSQL server here.
    """
    bench.bundled.mkdir(exist_ok=True)
    for plugin in ("sqlalchemy", "postgres"):
        (bench.bundled / f"{plugin}-bundled").symlink_to(bench.cli_venv)
    jobs = {("SQLite", size): _sqlite(bench, size) for size in SIZES["SQLite"]}
    with run_postgres() as postgres:
        sizes = SIZES["PostgreSQL"]
        server = {name: getattr(postgres, name) for name in ("host", "port", "user", "password")}
        given = json.dumps([server, {f"tables_{size}": _tables(size) for size in sizes}])
        python = bench.cli_venv / "bin" / "python"
        subprocess.run([python, "-c", FILL_POSTGRES], input=given.encode(), check=True)
        config = {
            "host_port": f"{postgres.host}:{postgres.port}",
            "username": postgres.user,
            "password": postgres.password,
        }
        for size in sizes:
            jobs["PostgreSQL", size] = Job("postgres", {**config, "database": f"tables_{size}"})
        yield jobs


def _sqlite(bench: Bench, size: int) -> Job:
    file = bench.folder / f"{size}.db"
    with closing(sqlite3.connect(file)) as db, db:
        db.executescript(";".join(_tables(size)))
    return Job("sqlalchemy", {"connect_uri": f"sqlite:///{file}", "platform": "sqlite"})


def _tables(size: int) -> list[str]:
    return [TABLE.format(number) for number in range(size)]
