"""`datahub-executor check`: whether all that a run needs is there, a line for each thing."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Final, TextIO

import anyio

from executor.commands.checks import datahub, machine, package_index, queue
from executor.commands.checks.clock import check_clock
from executor.commands.checks.findings import Findings
from executor.settings import Settings, SettingsError, load_settings, unknown_variables

FAULTY: Final = 1  # exit code
FAULTY_SETTINGS: Final = 2  # exit code


def run(env: Mapping[str, str], *, out: TextIO | None = None) -> int:
    """Look at everything, whatever fails; return the exit code.

    That is 1 where something keeps the executor from working, 2 where its configuration is faulty. Nothing is
    written to DataHub, and no message of the queue is touched.
    """
    findings = Findings(out or sys.stdout)
    settings = _checked_settings(env, findings)
    options = {"use_uvloop": True}
    if settings is None:
        anyio.run(partial(_without_settings, env, findings), backend_options=options)
        return FAULTY_SETTINGS
    anyio.run(partial(_with_settings, settings, env, findings), backend_options=options)
    return FAULTY if findings.faulty else 0


def _checked_settings(env: Mapping[str, str], findings: Findings) -> Settings | None:
    for name, meant in unknown_variables(env):
        way_out = (
            f"is {meant} meant?" if meant else "see `datahub-executor settings` for those that there are"
        )
        findings.warning("settings", f"{name} is no setting", way_out)
    try:
        settings = load_settings(env)
    except SettingsError as error:
        for fault in error.faults:
            findings.fault("settings", fault)
        return None
    findings.good("settings", f"valid; runs requests to executor id {settings.pool_id}")
    return settings


async def _with_settings(settings: Settings, env: Mapping[str, str], findings: Findings) -> None:
    ahead_of_datahub = await datahub.check_datahub(settings, findings)
    ahead_of_queue = await queue.check_queue(settings, env, findings)
    check_clock({"DataHub": ahead_of_datahub, "the queue": ahead_of_queue}, findings)
    machine.check_disk(settings, env, findings)
    machine.check_bundled(settings, findings)
    await machine.check_port(settings, findings)
    await package_index.check_index(settings, env, findings)
    await _check_rest(env, findings)


async def _without_settings(env: Mapping[str, str], findings: Findings) -> None:
    findings.skipped("DataHub, queue, clock, disk", "the settings are faulty")
    await _check_rest(env, findings)


async def _check_rest(env: Mapping[str, str], findings: Findings) -> None:
    await machine.check_uv(findings)
    await machine.check_ecs(env, findings)
