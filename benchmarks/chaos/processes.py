"""Which processes belong to whom: by a variable of their environment, which everything that they start inherits."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

LOOK_INTERVAL = 0.05  # seconds between two looks at what is left
LOOKS_END = 30.0  # seconds after which what is left is taken to stay


@dataclass(frozen=True)
class Remains:
    """What an executor left behind when it died: how long until all was gone (s), and what went last."""

    executor: int
    seconds: float
    last: str


def bearers(marker: bytes) -> list[int]:
    """The processes alive that bear `NAME=value`, or a beginning of it, in their environment."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _bears(name, marker)]  # noqa: PTH208


def _bears(pid: str, marker: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - no Path objects in a hot loop
            return any(line.startswith(marker) for line in file.read().split(b"\0"))
    except OSError:  # it ended, or belongs to somebody else
        return False


async def remains(executor: int, marker: bytes) -> Remains:
    """Watch what is left of an executor that has just been killed until it is gone."""
    began, seconds, last = time.monotonic(), 0.0, "nothing"
    while (left := bearers(marker)) and seconds < LOOKS_END:
        last = _command(left[0]) or last
        await anyio.sleep(LOOK_INTERVAL)
        seconds = time.monotonic() - began
    return Remains(executor, seconds, last)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def end_all(marker: bytes) -> None:
    """Kill whatever bears the marker, until nothing does."""
    while left := bearers(marker):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_INTERVAL)
