"""The service's own log: one event a line, JSON for machines, colour for people."""

import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

Event = MutableMapping[str, Any]

_LAST_STANDARD_DESCRIPTOR = 2
PATIENCE = 0.5  # seconds that the service waits for whoever reads its log, in all; then it goes on without
_REGAINED = PATIENCE / 100  # seconds of it that each write without a wait gives back


class LogStream:
    """Writes lines to a stream, come what may: a log that nobody takes must not end the service, nor stop it.

    Its disk may be full, its reader gone, or alive but not reading, as a log driver is that can't reach its
    server. Lines that are not taken are lost; how many says a line of its own, as soon as one is taken.
    """

    def __init__(self, stream: TextIO | None, lost_line: Callable[[int], str]) -> None:
        """`stream` is None where the service was started without one."""
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._lost_line = lost_line
        self._lost = 0
        self._torn = False  # the last line was taken in part
        self._patience = PATIENCE
        self._lock = threading.Lock()  # libraries log from threads of theirs

    def write(self, line: str) -> None:
        """Write a line, or lose it."""
        if self._stream is None:
            return
        if self._descriptor is None:
            self._stream.write(line)
            return
        with self._lock:
            told = f"{self._lost_line(self._lost)}\n" if self._lost else ""
            # Texts of others may hold half a character (a lone surrogate): nothing else needs the escape.
            if (not told or self._put(told, self._descriptor)) and self._put(line, self._descriptor):
                self._lost = 0
            else:
                self._lost += 1

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        """Whether people look at it."""
        return self._stream is not None and self._stream.isatty()

    def _put(self, line: str, descriptor: int) -> bool:
        data = line.encode("utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        taken = self._take(data, descriptor)
        if taken:
            self._torn = taken < len(data)
        return taken == len(data)

    def _take(self, data: bytes, descriptor: int) -> int:
        """Write what can be written without waiting for long; how many bytes that was."""
        taken = 0
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while taken < len(data):
            at_once = bool(poll.poll(0))
            if not at_once and not self._wait(poll):
                break
            try:
                # A pipe that is ready takes as much as this at once.
                taken += os.write(descriptor, data[taken : taken + select.PIPE_BUF])
            except OSError:
                break
            if at_once:
                self._patience = min(self._patience + _REGAINED, PATIENCE)
        return taken

    def _wait(self, poll: select.poll) -> bool:
        """Use up patience; whether the stream takes something again."""
        began = time.monotonic()
        ready = bool(poll.poll(self._patience * 1000))
        self._patience = max(self._patience - (time.monotonic() - began), 0.0) if ready else 0.0
        return ready


def configure_logging(
    mask: Callable[[str], str], stream: TextIO | None = sys.stdout, *, debug: bool = False
) -> None:
    """Set up structlog, and hand it what libraries log (warnings and worse).

    `mask` sees every text of every event last, so that a secret which finds its way into one does not leave.
    """
    _occupy_standard_descriptors()
    level = logging.DEBUG if debug else logging.INFO
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _masking(mask),
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if stream is not None and stream.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    output = LogStream(stream, lambda lines: str(renderer(None, "warning", _lost(lines))))
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),  # type: ignore[arg-type] # all that it uses
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_named, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _occupy_standard_descriptors() -> None:
    """Where the service was started without one of them, no socket takes its place: libuv aborts on that."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
        pass
    os.close(descriptor)


def _lost(lines: int) -> Event:
    return {
        "event": "log_lines_lost",
        "lines": lines,
        "reason": "the log could not be written: is its disk full, or nobody reading it?",
        "level": "warning",
        "timestamp": datetime.now(UTC).isoformat(),
    }


def _descriptor(stream: TextIO | None) -> int | None:
    """What the kernel knows it by; None if it is no file of its."""
    try:
        return stream.fileno() if stream is not None else None
    except OSError:  # in memory
        return None


def _named(_: object, __: str, event: Event) -> Event:
    """A library's text is no name of an event: it goes beside one."""
    record: logging.LogRecord = event["_record"]
    event["library"] = record.name
    event["message"] = event["event"]
    event["event"] = "library_message"
    return event


def _masking(mask: Callable[[str], str]) -> structlog.typing.Processor:
    def clean(value: object) -> object:
        match value:
            case str():
                return mask(value)
            case dict():
                return {key: clean(entry) for key, entry in value.items()}
            case list() | tuple():
                return [clean(entry) for entry in value]
            case None | bool() | int() | float():
                return value
            case _:
                return mask(str(value))

    def process(_: object, __: str, event: Event) -> Event:
        # The record of a library's message stays as it is: its text is masked as part of the event.
        return {key: value if key.startswith("_") else clean(value) for key, value in event.items()}

    return process
