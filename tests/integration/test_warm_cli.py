"""The real CLI, started cold and warm: the same recipes have the same outcome."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.integration.service import Site
from tests.servers import Postgres

PLUGINS = ("sqlalchemy", "postgres")
SILENT = {"DATAHUB_TELEMETRY_ENABLED": "false"}  # otherwise the CLI speaks with its makers


def plain(text: str, exec_id: str) -> list[str]:
    """What differs from run to run taken out: its id, times, sizes. Threads may say their lines in any order."""
    text = re.sub(rf"{exec_id}\.\w+/", "ID/", text).replace(exec_id, "ID")  # its folder's name first
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return sorted(re.sub(r"\((now|N seconds? ago)\)", "(when)", text).splitlines())


def ingested(site: Site, exec_id: str) -> dict[str, dict[str, Any]]:
    """All that reached DataHub besides the request's own state; it is forgotten there."""
    found = {}
    for urn in site.datahub.store.urns():
        if "dataHubExecutionRequest" not in urn:
            records = site.datahub.store.records(urn)
            found[urn.replace(exec_id, "ID")] = {
                name: plain(json.dumps(record.value, sort_keys=True, indent=1), exec_id)
                for name, record in records.items()
            }
            site.datahub.store.delete(urn)
    return found


@pytest.fixture
def venvs(site: Site, cli_venv: Path) -> Path:
    site.clis.venvs.mkdir(exist_ok=True)
    for plugin in PLUGINS:
        (site.clis.venvs / f"{plugin}-bundled").symlink_to(cli_venv)
    return site.clis.venvs


@pytest.mark.usefixtures("venvs")
async def test_the_same_recipes_have_the_same_outcome_cold_and_warm(
    site: Site, sqlite_db: Path, postgres: Postgres
) -> None:
    sqlite = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
    shop = {
        "host_port": f"{postgres.host}:{postgres.port}",
        "database": postgres.database,
        "username": postgres.user,
        "password": "${SHOP_PASSWORD}",
    }
    secret = {"extra_env_vars": json.dumps({"SHOP_PASSWORD": postgres.password})}
    requests: dict[str, dict[str, Any]] = {
        "tables": {"plugin": "sqlalchemy", "config": sqlite},
        "again": {"plugin": "sqlalchemy", "config": sqlite},
        "refused": {"plugin": "sqlalchemy", "config": {"platform": "sqlite", "no_such_option": 1}},
        "shop": {"plugin": "postgres", "config": shop, **secret},
        "tested": {"plugin": "postgres", "config": shop, "name": "TEST_CONNECTION", **secret},
        "untested": {
            "plugin": "postgres",
            "config": {**shop, "username": "nobody"},
            "name": "TEST_CONNECTION",
            **secret,
        },
    }
    outcomes: dict[str, dict[str, Any]] = {}
    for how, switch in (("cold", "false"), ("warm", "true")):
        outcomes[how] = {}
        async with site.service(DATAHUB_EXECUTOR_WARM_STARTS=switch, **SILENT) as service:
            for name, request in requests.items():
                exec_id = f"{how}-{name}"
                await site.submit(exec_id, **request)
                ended = await site.settled(exec_id)
                structured = json.loads(ended.value.get("structuredReport", {}).get("serializedValue", "{}"))
                outcomes[how][name] = {
                    "status": ended.status,
                    "report": plain(ended.value["report"], exec_id),
                    "structured": plain(json.dumps(structured, sort_keys=True, indent=1), exec_id),
                    "ingested": ingested(site, exec_id),
                }
            if how == "warm":
                assert await service.metric("datahub_executor_warm_parents") == len(PLUGINS)
                assert await service.metric("datahub_executor_warm_memory_bytes") > 50_000_000
    assert site.events("runs_start_cold") == []
    for name in requests:
        assert outcomes["warm"][name] == outcomes["cold"][name], name
    statuses = {name: outcome["status"] for name, outcome in outcomes["warm"].items()}
    assert statuses == {name: "FAILURE" if name == "refused" else "SUCCESS" for name in requests}
    assert any("customers" in urn for urn in outcomes["warm"]["again"]["ingested"])


async def test_parents_that_are_asked_for_are_there_before_the_first_run(
    site: Site, venvs: Path, sqlite_db: Path
) -> None:
    settings = {
        "DATAHUB_EXECUTOR_WARM_STARTS": "true",
        "DATAHUB_EXECUTOR_WARM_SOURCES": "oracle,sqlalchemy",
    } | SILENT
    async with site.service(**settings) as service:
        await site.until_metric(service, "datahub_executor_warm_parents", 1)
        [event] = site.events("not_started_ahead")
        assert "no bundled venv for oracle" in event["reason"]
        config = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
        # It would be another import, were it not for the reason that is said.
        await site.submit("debugged", "sqlalchemy", config=config, debug_mode="true")
        assert (await site.settled("debugged")).status == "SUCCESS"
        [cold] = site.events("runs_start_cold")
        assert cold["reason"].startswith("DATAHUB_DEBUG counts when the CLI is imported")
        assert cold["venv"] == str(venvs / "sqlalchemy-bundled")


@pytest.mark.usefixtures("venvs")
async def test_telemetry_goes_out_and_is_not_waited_for_cold_and_warm(site: Site, sqlite_db: Path) -> None:
    asked: list[bytes] = []

    async def deaf(stream: SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await anyio.sleep_forever()

    config = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
    outcomes = []
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as proxy,
    ):
        proxy.start_soon(listener.serve, deaf)
        port = listener.extra(SocketAttribute.local_port)
        settings = {"DATAHUB_TELEMETRY_ENABLED": "true", "HTTPS_PROXY": f"http://127.0.0.1:{port}"}
        for how, switch in (("cold", "false"), ("warm", "true")):
            asked.clear()
            async with site.service(DATAHUB_EXECUTOR_WARM_STARTS=switch, **settings):
                await site.submit(how, "sqlalchemy", config=config)
                ended = await site.settled(how)
            outcomes.append((ended.status, plain(ended.value["report"], how), ingested(site, how)))
            assert asked
            assert all(request.startswith(b"CONNECT track.datahubproject.io") for request in asked)
        proxy.cancel_scope.cancel()
    assert site.events("runs_start_cold") == []
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == "SUCCESS"
