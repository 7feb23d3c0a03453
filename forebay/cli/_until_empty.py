"""How a run with --until-empty ends: in time or not, and with which exit code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from forebay.brokers.naming import is_dead_letter_queue
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, note

if TYPE_CHECKING:
    from consumers.fleet import Fleet


class Deadline:
    """Sets `stop` when `timeout` seconds are over; None: never. Opened as a context, in the loop."""

    def __init__(self, stop: asyncio.Event, timeout: float | None) -> None:
        self._stop = stop
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None
        self.over = False

    async def __aenter__(self) -> Deadline:
        if self._timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._passed)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def failure(self, what: str, code: ExitCode) -> CommandError:
        return CommandError(f"{what}; gave up after {duration(self._timeout)}", code)

    def _passed(self) -> None:
        self.over = True
        self._stop.set()


def conclude(fleet: Fleet, deadline: Deadline) -> None:
    """
    Say what the run did, once it has ended.

    Raises:
        CommandError: not all is stored, with the exit code that says why.
    """
    statuses = [status for status in fleet.snapshot() if not is_dead_letter_queue(status.queue)]
    names = ", ".join(dict.fromkeys(status.queue for status in statuses))
    stored, dead = sum(s.stored for s in statuses), sum(s.dead for s in statuses)
    did = f"{stored:,} stored in this run"
    if not fleet.emptied:
        if not deadline.over:
            raise CommandError(f"stopped before {names} was empty; {did}", ExitCode.INTERRUPTED)
        raise deadline.failure(*_obstacle(fleet, names, did))
    if dead or fleet.left_to_retry:
        left = [f"{dead:,} became dead letters (forebay dead-letters list)"] if dead else []
        left += ["messages that failed wait for another attempt"] if fleet.left_to_retry else []
        raise CommandError(f"{names}: empty; {did}, but {' and '.join(left)}", ExitCode.PARTLY_FAILED)
    note(f"{names}: empty; {did}")


def _obstacle(fleet: Fleet, names: str, did: str) -> tuple[str, ExitCode]:
    """What kept the queues from being emptied, and its exit code."""
    if fleet.unreached:
        return f"{', '.join(fleet.unreached)} cannot be reached; {did}", ExitCode.BROKER_UNREACHABLE
    for status in fleet.snapshot():
        if status.state in ("starting", "reconnecting"):
            return f"the broker cannot be reached; {did}", ExitCode.BROKER_UNREACHABLE
        if status.paused_by == "destination":
            why = f"{status.queue}: {status.destination} is away or refuses: {status.pause_reason}"
            return f"{why}; {did}", ExitCode.DATABASE_UNREACHABLE
        if status.paused_by is not None:
            return f"{status.queue} is paused: {status.pause_reason}; {did}", ExitCode.FAILED
    return f"{names}: not empty yet; {did}; see: forebay queues", ExitCode.FAILED
