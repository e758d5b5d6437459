"""The demo's executor: `datahub-executor run` itself, as a process, in an environment of its own."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.text import TextReceiveStream

# Seconds for a stop: runs get 10 s to obey SIGTERM; a second signal hurries, and then there is SIGKILL.
STOP_STEPS: Final = ((signal.SIGTERM, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

_LINES_SHOWN: Final = 12
# What a machine needs to reach a package index, and to start Python at all. Nothing of AWS or DataHub.
_KEPT: Final = re.compile(
    r"PATH|LD_LIBRARY_PATH|LANG|LC_\w+|TZ|SSL_CERT_(FILE|DIR)|(HTTPS?|ALL|NO)_PROXY|NETRC|XDG_CONFIG_HOME|UV_\w+",
    re.IGNORECASE,
)


class DemoError(Exception):
    """The demo can't go on; the message says why."""


@dataclass(frozen=True)
class Event:
    """One event of the executor's log; `at` is when it was read, on the event loop's clock (s)."""

    name: str
    at: float
    fields: Mapping[str, Any]


def clean_environment(env: Mapping[str, str], *, home: Path, cache: Path) -> dict[str, str]:
    """What of a person's environment the demo's processes get; uv's cache goes to `cache`.

    uv keeps finding the person's own configuration. 127.0.0.1 is never asked of a proxy.
    """
    kept = {name: value for name, value in env.items() if _KEPT.fullmatch(name)}
    theirs = Path(env["HOME"]) if env.get("HOME") else None
    if theirs is not None:
        kept.setdefault("XDG_CONFIG_HOME", str(theirs / ".config"))
        if (theirs / ".netrc").is_file():
            kept.setdefault("NETRC", str(theirs / ".netrc"))
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, [kept.get(name), "127.0.0.1"]))
    return kept | {
        "HOME": str(home),
        "UV_CACHE_DIR": str(cache),
        "AWS_CONFIG_FILE": str(home / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "DATAHUB_TELEMETRY_ENABLED": "false",
    }


class DemoService:
    """The running executor and its log. Made by `running_service`."""

    def __init__(self, process: Process, output: ByteReceiveStream) -> None:
        self.log: list[str] = []
        self._process = process
        self._output = output
        self._events: list[Event] = []
        self._news = anyio.Event()
        self._stopping = False

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def until(self, name: str, **fields: object) -> Event:
        """The first event of that name with these fields, now or to come. The caller limits the time."""
        seen = 0
        while True:
            news = self._news
            for event in self._events[seen:]:
                if event.name == name and fields.items() <= event.fields.items():
                    return event
                seen += 1
            await news.wait()

    def last_lines(self) -> str:
        """The end of the log, for a person to read."""
        return "\n".join(f"  {line}" for line in self.log[-_LINES_SHOWN:])

    async def read(self) -> None:
        """Read the log to its end. Raises DemoError where the process ended though nobody stopped it."""
        rest = ""
        async for chunk in TextReceiveStream(self._output, errors="replace"):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                self._note(line)
        code = await self._process.wait()
        if not self._stopping:
            raise DemoError(f"the executor ended with exit code {code}. Its last lines:\n{self.last_lines()}")

    def _note(self, line: str) -> None:
        self.log.append(line)
        try:
            fields = json.loads(line)
        except ValueError:
            return  # a line of a library's, or what Python says of a crash
        if not isinstance(fields, dict):
            return
        self._events.append(Event(fields.get("event", ""), anyio.current_time(), fields))
        self._news.set()
        self._news = anyio.Event()

    async def stop(self) -> None:
        """End it: politely, in a hurry, for certain."""
        self._stopping = True
        for number, patience in STOP_STEPS:
            if self._process.returncode is None:
                self._process.send_signal(number)
            with anyio.move_on_after(patience):
                await self._process.wait()
                return


@asynccontextmanager
async def running_service(env: Mapping[str, str], folder: Path) -> AsyncIterator[DemoService]:
    """Run the executor in our process group, with `folder` as its working directory, and stop it at the end.

    Raises:
        DemoError: it ended by itself.
    """
    process = await anyio.open_process(
        # -P: a folder named `executor` where somebody calls the demo is not what is meant
        [sys.executable, "-P", "-m", "executor", "run"],
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    if process.stdout is None:
        raise DemoError("the executor was started without a pipe")
    service = DemoService(process, process.stdout)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.read)
            try:
                yield service
            finally:
                with anyio.CancelScope(shield=True):
                    await service.stop()
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await process.aclose()
