"""What a run with --until-empty says when it was not empty in time, and with which exit code."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from consumers.fleet import Fleet
from consumers.status import QueueStatus
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._until_empty import Deadline, conclude

FIELDS: dict[str, Any] = {
    "queue": "orders",
    "broker": "rabbit",
    "draining": False,
    "destination": "database",
    "state": "running",
    "paused_by": None,
    "pause_reason": None,
    "needs_someone": False,
    "paused_for": None,
    "next_try_in": None,
    "rate": None,
    "busy_for": 0.0,
    "stored": 120,
    "duplicates": 0,
    "retried": 0,
    "dead": 0,
    "released": 0,
    "restarts": 0,
    "last_error": None,
}


class Ended:
    """A fleet that has ended."""

    def __init__(self, *, emptied: bool = False, unreached: tuple[str, ...] = (), **fields: Any) -> None:
        self.emptied = emptied
        self.unreached = unreached
        self.left_to_retry = False
        self._status = QueueStatus(**{**FIELDS, **fields})

    def snapshot(self) -> list[QueueStatus]:
        return [self._status]


async def _conclude(ended: Ended, *, over: bool) -> None:
    deadline = Deadline(asyncio.Event(), 60.0)
    deadline.over = over
    conclude(cast("Fleet", ended), deadline)


@pytest.mark.parametrize(
    ("ended", "code", "words"),
    [
        (Ended(), ExitCode.FAILED, "orders: not empty yet; 120 stored in this run"),
        (
            Ended(state="paused", paused_by="operator", pause_reason="paused by ann: stocktaking"),
            ExitCode.FAILED,
            "orders is paused: paused by ann: stocktaking",
        ),
        (
            Ended(state="paused", paused_by="destination", pause_reason="connection refused"),
            ExitCode.DATABASE_UNREACHABLE,
            "database is away or refuses: connection refused",
        ),
        (Ended(state="reconnecting"), ExitCode.BROKER_UNREACHABLE, "the broker cannot be reached"),
        (Ended(unreached=("amqp://old/",)), ExitCode.BROKER_UNREACHABLE, "amqp://old/ cannot be reached"),
    ],
)
async def test_a_run_that_was_not_done_in_time_says_what_kept_it(
    ended: Ended, code: ExitCode, words: str
) -> None:
    with pytest.raises(CommandError, match="gave up after") as raised:
        await _conclude(ended, over=True)

    assert words in str(raised.value)
    assert raised.value.code == code


async def test_dead_letters_of_this_run_are_a_part_that_failed() -> None:
    with pytest.raises(CommandError, match="3 became dead letters") as raised:
        await _conclude(Ended(emptied=True, dead=3), over=False)

    assert raised.value.code == ExitCode.PARTLY_FAILED


async def test_a_message_that_waits_for_another_attempt_is_a_part_that_failed() -> None:
    ended = Ended(emptied=True)
    ended.left_to_retry = True

    with pytest.raises(CommandError, match="wait for another attempt") as raised:
        await _conclude(ended, over=False)

    assert raised.value.code == ExitCode.PARTLY_FAILED


async def test_a_run_that_was_stopped_by_a_signal_has_not_succeeded() -> None:
    with pytest.raises(CommandError, match="stopped before orders was empty") as raised:
        await _conclude(Ended(), over=False)

    assert raised.value.code == ExitCode.INTERRUPTED
