"""
Logging: one line per event on stderr, JSON for machines, readable on a terminal.

Forebay's own events come through structlog; what libraries log (uvicorn, alembic)
is routed into the same lines. Neither bodies nor credentials are ever logged, and
tracebacks are printed without the values of variables, which may hold both.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")

_NOISY = ("uvicorn.error", "alembic", "asyncio", "aiokafka", "pika", "watchfiles")
"""Libraries whose information is detail to us; shown with --log-level debug."""


class RepeatLimit:
    """
    Lets the same complaint through a few times per period, and then counts it.

    In an outage each of thousands of messages has the same to say, and the log must
    not fill the disk that the queue needs. What was left out is told as
    `repeated` on the next line of its kind. Warnings and errors only.
    """

    def __init__(
        self, *, burst: int = 5, period: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._period = period
        self._clock = clock
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def allows(self, *kind: object) -> int | None:
        """None: leave it out. Else how many of this kind were left out before it."""
        now = self._clock()
        start, count = self._seen.get(kind, (now, 0))
        if now - start < self._period:
            self._seen[kind] = (start, count + 1)
            return 0 if count < self._burst else None
        if len(self._seen) > 1_000:
            self._seen = {k: v for k, v in self._seen.items() if now - v[0] < self._period}
        self._seen[kind] = (now, 1)
        return max(0, count - self._burst)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if event.get("level") in ("debug", "info"):
            return event
        repeated = self.allows(
            event.get("level"), event["event"], event.get("queue"), event.get("destination")
        )
        if repeated is None:
            raise structlog.DropEvent
        if repeated:
            event["repeated"] = repeated
        return event


class _Filter(logging.Filter):
    """The same limit for what libraries log."""

    def __init__(self, limit: RepeatLimit) -> None:
        super().__init__()
        self._limit = limit

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or self._limit.allows(record.name, record.msg) is not None


class _Lossy:
    """
    A stream that drops what it cannot write.

    Standard error may be a file on the disk that is just full, or a pipe whose reader
    is gone: a line less in the log must not stop what the line is about.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass


def configure(level: str = "info", *, stream: TextIO | None = None, json: bool | None = None) -> None:
    """
    Set up logging for this process. `json` None: readable if `stream` is a terminal.

    Called once by each command, before anything is logged; calling it again replaces
    what was set.
    """
    stream = sys.stderr if stream is None else stream
    readable = stream.isatty() if json is None else not json
    number = getattr(logging, level.upper())
    limit = RepeatLimit()

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable),
    ]
    render: list[Processor]
    if readable:
        colors = not os.environ.get("NO_COLOR")
        render = [
            structlog.dev.ConsoleRenderer(
                colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=30
            )
        ]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]

    structlog.configure(
        processors=[*shared, limit, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lossy(stream))),
        cache_logger_on_first_use=False,
    )

    handler = logging.StreamHandler(stream)
    handler.addFilter(_Filter(limit))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _NOISY:
        logging.getLogger(name).setLevel(number if level == "debug" else max(number, logging.WARNING))
    # One line per request would cost more than the request; figures are in /metrics.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(True)
