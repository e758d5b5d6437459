"""The requests: what each is to do, when it is sent, and whether all have ended."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from benchmarks.chaos.cli import PLUGIN
from benchmarks.harness import request_body

LAST_SENT = 0.9  # of the time with faults
DAEMONS = 0.25  # of the runs leave a daemon behind


@dataclass(frozen=True)
class Request:
    """One request: sent so many seconds from the start, running for so many, with or without a daemon."""

    exec_id: str
    at: float
    seconds: float
    daemon: bool


def requests(seed: int, prefix: str, *, count: int, seconds: float, lease: float) -> list[Request]:
    """Spread over the time: most are short, one of twelve is longer than the lease; 5 to 6 s in the mean."""
    chance = random.Random(seed + 1)
    return [
        Request(
            f"{prefix}{number:05}",
            seconds * LAST_SENT * number / count,
            chance.choices(
                [chance.uniform(1, 4), chance.uniform(4, 12), lease * chance.uniform(1.05, 1.5)], [9, 2, 1]
            )[0],
            chance.random() < DAEMONS,
        )
        for number in range(count)
    ]


async def send_all(sqs: Any, queue: str, planned: Sequence[Request], began: float) -> None:
    """Send each when it is due; `began` is the start on the event loop's clock."""
    for request in planned:
        await anyio.sleep_until(began + request.at)
        config = {"seconds": request.seconds, "daemon": request.daemon}
        body = request_body(request.exec_id, {"source": {"type": PLUGIN, "config": config}})
        await sqs.send_message(QueueUrl=queue, MessageBody=body)


async def left_in(sqs: Any, queue: str) -> int:
    """The messages of a queue, hidden ones included."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)
    return sum(int(answer["Attributes"][name]) for name in names)
