"""DataHub: whether it is there, and what the token is good for."""

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from uuid import uuid4

import anyio

from executor.commands.checks.clock import offset
from executor.commands.checks.findings import Findings
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    UnauthorizedError,
)
from executor.datahub.probe import write_access
from executor.datahub.transport import Transport, open_transport
from executor.settings import Settings

ANSWER_WITHIN: Final = 15.0  # seconds for one call
NAMES: Final = ("DataHub", "read requests", "read kill signals", "write run state", "read secrets")
_TOKEN: Final = "token"  # noqa: S105 - the name of a line
_READ, _SIGNALS, _WRITE, _SECRETS = NAMES[1:]

Answer = TypeVar("Answer")


async def check_datahub(
    settings: Settings, findings: Findings, clock: Callable[[], float] = time.time
) -> float | None:
    """Look at DataHub; seconds that our `clock` is ahead of its own, None if it does not tell."""
    token = settings.gms_token.get_secret_value() if settings.gms_token else None
    async with open_transport(settings.gms_url, token, lambda _operation, _failure: None) as transport:
        datahub = DataHub(transport)
        asked = anyio.current_time()
        version = None
        try:
            version = await _soon(datahub.ping)
        except DataHubError as error:
            findings.fault(NAMES[0], f"{settings.gms_url}: {error}", _way_to(error))
            for name in (_TOKEN, *NAMES[1:]):
                findings.skipped(name, "DataHub can't be reached")
        took, ahead = (anyio.current_time() - asked) * 1000, offset(transport.date, clock())
        if version is not None:
            findings.good(NAMES[0], f"version {version} at {settings.gms_url}, answers in {took:.0f} ms")
            await _check_token(settings, datahub, transport, findings)
        return ahead


async def _check_token(
    settings: Settings, datahub: DataHub, transport: Transport, findings: Findings
) -> None:
    if settings.gms_token is None:
        words = "none is set, which only a DataHub without authentication takes"
        findings.warning(_TOKEN, words, "set DATAHUB_GMS_TOKEN")
    made_up = f"check-{uuid4()}"
    await _check_read(findings, _READ, "by GraphQL", lambda: datahub.followed_state(made_up))
    await _check_read(findings, _SIGNALS, "by OpenAPI", lambda: datahub.kill_signals([made_up]))
    await _check_write(transport, findings)
    await _check_secrets(datahub, findings, made_up)


async def _check_read(findings: Findings, name: str, how: str, read: Callable[[], Awaitable[object]]) -> None:
    try:
        await _soon(read)
    except UnauthorizedError as error:
        findings.fault(name, str(error), "give the token's owner the privilege to view execution requests")
    except DataHubError as error:
        findings.fault(name, str(error))
    else:
        findings.good(name, how)


async def _check_write(transport: Transport, findings: Findings) -> None:
    try:
        way = await _soon(lambda: write_access(transport))
    except UnauthorizedError as error:
        findings.fault(
            _WRITE, str(error), "give the token's owner the privilege to edit entities (execution requests)"
        )
    except DataHubUnavailableError as error:
        findings.warning(_WRITE, f"could not be tried without writing: {error}", "see the first run")
    except DataHubRefusedError as error:
        findings.fault(_WRITE, str(error))
    else:
        old = "" if way == "patchEntity" else ", as this server has no patchEntity for it"
        findings.good(_WRITE, f"by {way}{old} (tried with what can't be stored)")


async def _check_secrets(datahub: DataHub, findings: Findings, made_up: str) -> None:
    try:
        await _soon(lambda: datahub.secret_values([made_up]))
    except DataHubError as error:
        findings.warning(
            _SECRETS,
            str(error),
            "give the token's owner the privilege to manage secrets, or keep to secrets in files and variables",
        )
    else:
        findings.good(_SECRETS, "from DataHub's own store")


async def _soon(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        with anyio.fail_after(ANSWER_WITHIN):
            return await ask()
    except TimeoutError:
        raise DataHubUnavailableError(f"DataHub did not answer within {ANSWER_WITHIN:g} s") from None


def _way_to(error: DataHubError) -> str:
    if isinstance(error, DataHubUnavailableError):
        return "check DATAHUB_GMS_URL, the network between, and whether DataHub runs"
    return ""
