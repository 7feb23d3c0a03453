"""What the long-running commands share: signals, starting up, draining."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import note
from forebay.errors import ForebayError, SettingsError, SinkUnavailable

if TYPE_CHECKING:
    from forebay.storage.database import Database

log = structlog.get_logger()


def run_until_stopped(
    main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, leash: int | None = None
) -> None:
    """
    Run `main` with an event that SIGTERM and Ctrl-C set; it returns when drained.

    So does the end of the process that holds the other end of the pipe `leash`.

    A second Ctrl-C or SIGTERM ends the process at once: what was not settled is
    delivered again.
    """

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def asked(number: int) -> None:
            name = signal.Signals(number).name
            if stop.is_set():
                note(f"{name} again: stopping without draining")
                os._exit(ExitCode.INTERRUPTED)
            log.info("stopping; finishing what is in hand", signal=name)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked, number)
        if leash is not None:
            loop.add_reader(leash, stop.set)
        try:
            await main(stop)
        finally:
            if leash is not None:
                loop.remove_reader(leash)

    import uvloop

    uvloop.run(body())
    # Last of all: with this line in the log nothing of ours runs any more, and it was no crash.
    log.info("stopped")


class Start:
    """Whether a process is still on its way up; `done` says that it serves."""

    def __init__(self) -> None:
        self.over = False

    def done(self) -> None:
        self.over = True


@contextmanager
def starting(what: str) -> Iterator[Start]:
    """
    Turn whatever keeps a process from starting into exit code 3, with its reason.

    Settings keep their own code: they are the user's to correct, not the machine's.
    What ends the process once it has started is a failure like any other.
    """
    start = Start()
    try:
        yield start
    except Exception as error:
        cause = _first(error)
        if isinstance(cause, (SettingsError, CommandError)):
            raise cause from error
        if isinstance(cause, (ForebayError, OSError)):
            if start.over:
                raise CommandError(f"{what} stopped: {cause}", ExitCode.FAILED) from error
            raise CommandError(f"{what} could not start: {cause}", ExitCode.STARTUP_FAILED) from error
        raise


def _first(error: Exception) -> Exception:
    """The error itself, or the first of those that tasks side by side have raised."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def until_reachable(
    database: Database, check: Callable[[Database], object], stop: asyncio.Event
) -> bool:
    """
    Run `check` against the database until it answers; False if `stop` came first.

    A process that starts in an outage of the database waits for its end: exiting
    would only add a supervisor's back-off to it. Whatever else `check` raises is raised.
    """
    from forebay.storage.classify import TransientError

    wait = 0.5
    while not stop.is_set():
        try:
            await asyncio.to_thread(check, database)
            return True
        except (SinkUnavailable, TransientError) as error:  # away, or busy with another process's lock
            log.warning(
                "database unreachable, trying again",
                database=database.safe_url,
                reason=str(error),
                delay=wait,
            )
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            wait = min(wait * 2, 10.0)
    return False
