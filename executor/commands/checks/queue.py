"""The queue: whether it is there, what is permitted, and whether its own settings go with ours."""

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, Literal

import anyio

from executor.commands.checks.clock import offset
from executor.commands.checks.findings import Findings
from executor.queue.delivery import QueueDeniedError, QueueError
from executor.queue.opening import open_queue
from executor.queue.sqs import Operation, QueueFacts, SqsQueue
from executor.redrive import enough
from executor.settings import Settings

ANSWER_WITHIN: Final = 20.0  # seconds for one call, its repetition included
_ATTRIBUTES: Final = "sqs:GetQueueAttributes"
_SENDING: Final = "sqs:SendMessage"
_OPERATIONS: Final[Mapping[str, Operation]] = {
    "sqs:ReceiveMessage": "receive",
    "sqs:ChangeMessageVisibility": "extend",
    "sqs:DeleteMessage": "delete",
    _SENDING: "send",
}
_OWN_SETTINGS: Final = ("redrive policy", "visibility timeout", "retention")
_REDRIVE, _VISIBILITY, _RETENTION = _OWN_SETTINGS
NAMES: Final = ("queue", _ATTRIBUTES, *_OPERATIONS, *_OWN_SETTINGS)


async def check_queue(
    settings: Settings, env: Mapping[str, str], findings: Findings, clock: Callable[[], float] = time.time
) -> float | None:
    """Look at the queue; seconds that our `clock` is ahead of its own, None if it does not tell."""
    async with AsyncExitStack() as stack:
        try:
            with anyio.fail_after(ANSWER_WITHIN):
                queue = await stack.enter_async_context(
                    open_queue(
                        settings.queue,
                        region=settings.aws_region,
                        visibility_timeout=settings.visibility_timeout,
                        env=env,
                    )
                )
        except (QueueError, TimeoutError) as error:
            _not_reached(str(settings.queue), error, findings)
            return None
        facts = await _facts(queue, findings)
        ahead = offset(queue.date, clock())
        if facts != "unreachable":
            await _check_permissions(queue, findings)
            _check_own_settings(facts, settings, findings)
        return ahead


def _not_reached(queue: str, error: QueueError | TimeoutError, findings: Findings) -> None:
    words = str(error) or f"the queue {queue} could not be reached: no answer in {ANSWER_WITHIN:g} s"
    names_way_out = any(sign in words for sign in ("check ", "set ", "Check "))
    way_out = (
        "" if names_way_out else "check DATAHUB_EXECUTOR_QUEUE, AWS_ENDPOINT_URL and the network between"
    )
    findings.fault(NAMES[0], words, way_out)
    for name in NAMES[1:]:
        findings.skipped(name, "there is no queue to ask")


async def _facts(queue: SqsQueue, findings: Findings) -> QueueFacts | Literal["denied", "unreachable"]:
    try:
        with anyio.fail_after(ANSWER_WITHIN):
            facts = await queue.facts()
    except QueueDeniedError as error:
        findings.good(NAMES[0], f"{queue.url} answers")
        way_out = f"allow {_ATTRIBUTES}, or the queue's own settings are not seen"
        findings.warning(_ATTRIBUTES, str(error), way_out)
        return "denied"
    except (QueueError, TimeoutError) as error:
        _not_reached(queue.url, error, findings)
        return "unreachable"
    kind = "FIFO" if queue.url.endswith(".fifo") else "standard"
    key = "; encrypted with KMS: the role needs kms:Decrypt, too" if facts.encrypted_with else ""
    counts = f"{facts.waiting:,} waiting, {facts.in_flight:,} in flight"
    findings.good(NAMES[0], f"{queue.url}, {kind}, {counts}{key}")
    findings.good(_ATTRIBUTES, f"permitted on {facts.arn}")
    return facts


async def _check_permissions(queue: SqsQueue, findings: Findings) -> None:
    for name, operation in _OPERATIONS.items():
        try:
            with anyio.fail_after(ANSWER_WITHIN):
                await queue.check_permission(operation)
        except QueueDeniedError as error:
            way_out = f"allow {name} on the queue in the role's policy"
            if name == _SENDING:
                why = "or runs that take longer than the queue hides a message are ended and tried again"
                findings.warning(name, str(error), f"{way_out}, {why}")
            else:
                findings.fault(name, str(error), way_out)
        except (QueueError, TimeoutError) as error:
            findings.fault(name, str(error) or f"{queue.url} did not answer in time")
        else:
            findings.good(name, "not denied (asked so that no message is touched)")


def _check_own_settings(facts: QueueFacts | str, settings: Settings, findings: Findings) -> None:
    if isinstance(facts, QueueFacts):
        check_facts(facts, settings, findings)
        return
    for name in _OWN_SETTINGS:
        findings.skipped(name, f"{_ATTRIBUTES} is not permitted")


def check_facts(facts: QueueFacts, settings: Settings, findings: Findings) -> None:
    """Judge the queue's own settings by ours."""
    wanted = enough(settings.max_attempts)
    if facts.dead_letter_arn is None:
        findings.warning(
            _REDRIVE,
            "none: a message that can't be read comes back until its retention ends",
            f"give the queue a dead-letter queue with a maxReceiveCount of {wanted} or more",
        )
    elif facts.max_receive_count is not None and facts.max_receive_count < wanted:
        findings.warning(
            _REDRIVE,
            f"after {facts.max_receive_count} receives a message goes to {facts.dead_letter_arn}, maybe before "
            f"its {settings.max_attempts} attempts are used up (DATAHUB_EXECUTOR_MAX_ATTEMPTS)",
            f"set maxReceiveCount to {wanted} or more",
        )
    else:
        findings.good(_REDRIVE, f"after {facts.max_receive_count} receives, to {facts.dead_letter_arn}")
    findings.good(
        _VISIBILITY,
        f"{settings.visibility_timeout} s, said with every receive (the queue's own {facts.visibility_timeout} s "
        "don't count)",
    )
    if facts.retention < settings.task_timeout:
        findings.warning(
            _RETENTION,
            f"a message lives {facts.retention:,} s, waiting and running, and a run may take "
            f"{settings.task_timeout:,g} s: interrupted after that, it is not started again",
            "raise the queue's MessageRetentionPeriod, or lower DATAHUB_EXECUTOR_TASK_TIMEOUT",
        )
    else:
        findings.good(
            _RETENTION, f"{facts.retention:,} s, longer than a run may take ({settings.task_timeout:,g} s)"
        )
