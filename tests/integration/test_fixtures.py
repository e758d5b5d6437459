"""The servers under the tests are the real things: a test that relies on them may rely on this."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.servers import LocalStack, Postgres


async def test_a_queue_of_ones_own_delivers_and_gives_up_on_a_message(localstack: LocalStack) -> None:
    url = await localstack.make_queue(fifo=True, visibility=0, redrive=1)
    async with localstack.client() as sqs:
        await sqs.send_message(QueueUrl=url, MessageBody="{}", MessageGroupId="g", MessageDeduplicationId="1")
        first = await sqs.receive_message(QueueUrl=url, WaitTimeSeconds=5)
        second = await sqs.receive_message(QueueUrl=url)
        dead = await sqs.receive_message(QueueUrl=localstack.dead_letters(url), WaitTimeSeconds=5)
    assert [message["Body"] for message in first["Messages"]] == ["{}"]
    assert not second.get("Messages")
    assert [message["Body"] for message in dead["Messages"]] == ["{}"]


def test_the_real_cli_reads_sqlite(cli_venv: Path, sqlite_db: Path, tmp_path: Path) -> None:
    source = {"type": "sqlalchemy", "config": {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}}
    assert _tables_found(cli_venv, source, tmp_path) == {"main.customers", "main.orders"}


def test_the_real_cli_reads_postgres(cli_venv: Path, postgres: Postgres, tmp_path: Path) -> None:
    config = {
        "host_port": f"{postgres.host}:{postgres.port}",
        "database": postgres.database,
        "username": postgres.user,
        "password": postgres.password,
    }
    found = _tables_found(cli_venv, {"type": "postgres", "config": config}, tmp_path)
    assert found == {"shop.public.customers", "shop.public.orders"}


def test_the_real_cli_reads_postgres_by_its_address(
    cli_venv: Path, postgres: Postgres, tmp_path: Path
) -> None:
    config = {
        "connect_uri": postgres.uri,
        "platform": "postgres",
        "schema_pattern": {"allow": ["public"]},
    }
    found = _tables_found(cli_venv, {"type": "sqlalchemy", "config": config}, tmp_path)
    assert found == {"public.customers", "public.orders"}


def _tables_found(cli_venv: Path, source: dict[str, Any], folder: Path) -> set[str]:
    found = folder / "found.json"
    recipe = {"source": source, "sink": {"type": "file", "config": {"filename": str(found)}}}
    done = subprocess.run(
        [cli_venv / "bin" / "datahub", "ingest", "run", "-c", "-"],
        input=yaml.safe_dump(recipe),
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(folder), "DATAHUB_TELEMETRY_ENABLED": "false"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    urns = {event.get("entityUrn", "") for event in json.loads(found.read_text())}
    return {urn.split(",")[1] for urn in urns if urn.startswith("urn:li:dataset:")}
