"""The service's own log: one event a line, JSON for machines, colour for people."""

import io
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

Event = MutableMapping[str, Any]


def configure_logging(
    mask: Callable[[str], str], stream: TextIO = sys.stdout, *, debug: bool = False
) -> None:
    """Set up structlog, and hand it what libraries log (warnings and worse).

    `mask` sees every text of every event last, so that a secret which finds its way into one does not leave.
    """
    level = logging.DEBUG if debug else logging.INFO
    if isinstance(stream, io.TextIOWrapper):
        # Texts of others may hold half a character (a lone surrogate): nothing else needs the escape in UTF-8.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _masking(mask),
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if stream.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_named, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


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
