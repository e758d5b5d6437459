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
    DataHubUnavailableError,
)
from executor.datahub.probe import write_access
from executor.datahub.transport import Transport, open_transport
from executor.settings import Settings

ANSWER_WITHIN: Final = 15.0  # seconds for one call
NAMES: Final = ("DataHub", "read requests", "read kill signals", "write run state", "read secrets")
_TOKEN: Final = "token"  # noqa: S105 - the name of a line
_FORBIDDEN: Final = "DataHub forbids it to the token's owner"
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
            await _check_access(transport, findings, has_token=token is not None)
        return ahead


async def _check_access(transport: Transport, findings: Findings, *, has_token: bool) -> None:
    """Whether the token is accepted; if so, what it is good for."""
    datahub, made_up = DataHub(transport), f"check-{uuid4()}"
    reading = await _error_of(lambda: datahub.followed_state(made_up))
    if reading is not None and reading.kind == "401":
        words = "refused" if has_token else "none is set, and DataHub asks for one"
        findings.fault(_TOKEN, words, "make a new one and set DATAHUB_GMS_TOKEN")
        for name in NAMES[1:]:
            findings.skipped(name, "DataHub accepts no call without a token that it knows")
        return
    if not has_token:
        words = "none is set, which only a DataHub without authentication takes"
        findings.warning(_TOKEN, words, "set DATAHUB_GMS_TOKEN")
    elif isinstance(reading, DataHubUnavailableError):
        findings.skipped(_TOKEN, "DataHub gave no answer that tells")
    else:
        findings.good(_TOKEN, "accepted")
    _judge_read(findings, _READ, "by GraphQL", reading)
    signals = await _error_of(lambda: datahub.kill_signals([made_up]))
    _judge_read(findings, _SIGNALS, "by OpenAPI", signals)
    await _check_write(transport, findings)
    await _check_secrets(datahub, findings, made_up)


async def _error_of(ask: Callable[[], Awaitable[object]]) -> DataHubError | None:
    try:
        await _soon(ask)
    except DataHubError as error:
        return error
    return None


def _judge_read(findings: Findings, name: str, how: str, error: DataHubError | None) -> None:
    if error is None:
        findings.good(name, how)
    elif error.kind == "403":
        way_out = "give the token's owner the privilege to view execution requests"
        findings.fault(name, _FORBIDDEN, way_out)
    else:
        findings.fault(name, str(error))


async def _check_write(transport: Transport, findings: Findings) -> None:
    try:
        way = await _soon(lambda: write_access(transport))
    except DataHubUnavailableError as error:
        findings.warning(_WRITE, f"could not be tried without writing: {error}", "see the first run")
    except DataHubError as error:
        if error.kind == "403":
            way_out = "give the token's owner the privilege to edit entities (execution requests)"
            findings.fault(_WRITE, _FORBIDDEN, way_out)
        else:
            findings.fault(_WRITE, str(error))
    else:
        old = "" if way == "patchEntity" else ", as this server has no patchEntity for it"
        findings.good(_WRITE, f"by {way}{old} (tried with what can't be stored)")


async def _check_secrets(datahub: DataHub, findings: Findings, made_up: str) -> None:
    error = await _error_of(lambda: datahub.secret_values([made_up]))
    if error is None:
        findings.good(_SECRETS, "from DataHub's own store")
        return
    words, way_out = str(error), "keep to secrets in files and variables"
    if error.kind == "403":
        words = _FORBIDDEN
        way_out = f"give the token's owner the privilege to manage secrets, or {way_out}"
    findings.warning(_SECRETS, words, way_out)


async def _soon(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        with anyio.fail_after(ANSWER_WITHIN):
            return await ask()
    except TimeoutError:
        raise DataHubUnavailableError(f"DataHub did not answer within {ANSWER_WITHIN:g} s") from None


def _way_to(error: DataHubError) -> str:
    if isinstance(error, DataHubUnavailableError) and "check DATAHUB_GMS_URL" not in str(error):
        return "check DATAHUB_GMS_URL, the network between, and whether DataHub runs"
    return ""
