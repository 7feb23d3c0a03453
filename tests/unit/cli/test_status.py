"""`forebay status`: from what the parts tell, or do not tell, to one sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from forebay.brokers.api import Depth
from forebay.cli._depths import QueueDepth
from forebay.cli._facts import Facts, QueueFacts, facts
from forebay.cli._looks import Look, Stored
from forebay.cli._pauses import Pause
from forebay.cli._scrape import Asked, Process
from forebay.cli._verdict import Verdict, judge
from forebay.storage.controls import Control
from forebay.storage.reports import LastSeen

NOW = datetime(2026, 11, 26, 12, 5, tzinfo=UTC)


def queue(change: float | None, waiting: int | None = 100, name: str = "orders") -> QueueFacts:
    return QueueFacts(queue=name, waiting=waiting, change=change)


def said(*queues: QueueFacts, **more: object) -> Verdict:
    return judge(replace(Facts(queues=queues), **more), now=NOW)  # type: ignore[arg-type]  # as named


# ---- the sentence


def test_all_is_fine_with_what_passes_through() -> None:
    passing = replace(queue(0.0, waiting=5), oldest=0.2, coming=1204.4, leaving=1203.0)

    assert said(passing) == Verdict(ok=True, sentence="All fine: nothing is behind; 1,204/s in, 1,203/s out.")


def test_a_draining_queue_has_an_end_in_sight() -> None:
    assert said(queue(-20.0)) == Verdict(
        ok=True, sentence="Catching up: 100 messages on orders, drained in about 5 s."
    )


def test_the_slowest_queue_decides_when_all_is_drained() -> None:
    verdict = said(queue(-20.0), queue(-1.0, name="clicks"))

    assert "200 messages on orders, clicks, drained in about 100 s" in verdict.sentence


def test_a_growing_queue_is_falling_behind_and_says_when_it_is_full() -> None:
    verdict = said(replace(queue(12.0), full_in=7_200.0), queue(-20.0, name="clicks"))

    assert not verdict.ok
    assert "Falling behind" in verdict.sentence
    assert "orders grows by 12/s, full in 2 h." in verdict.sentence


def test_a_queue_with_work_that_does_not_move_is_standing_still() -> None:
    verdict = said(queue(0.0), consumers_alive=0)

    assert not verdict.ok
    assert verdict.sentence.startswith("Standing still: 100 messages on orders, and none moves. No consumer")


def test_a_queue_that_is_taken_from_as_fast_as_it_is_filled_does_not_stand_still() -> None:
    assert said(replace(queue(0.0), coming=3.0, leaving=3.0)) == Verdict(
        ok=False,
        sentence=("Behind: 100 messages on orders; orders does not shrink: as much comes in as goes out."),
    )


def test_one_look_is_not_called_catching_up() -> None:
    verdict = said(queue(None), queue(-1.0, name="clicks"))

    assert not verdict.ok
    assert "whether orders moves was not seen yet" in verdict.sentence


def test_the_sentence_of_an_outage() -> None:
    since = NOW - timedelta(minutes=2)
    paused = Pause(reason="PostgreSQL unreachable", since=since, next_try_in=5.2)

    verdict = said(
        replace(queue(3.0, waiting=4120), pause=paused),
        database="PostgreSQL",
        database_trouble="connection refused",
        dead_letters=None,
    )

    assert not verdict.ok
    assert verdict.sentence == (
        f"orders paused: PostgreSQL unreachable since {since.astimezone():%H:%M};"
        " 4,120 waiting, none lost; next try in 5 s."
    )


def test_without_broker_the_journals_go_on() -> None:
    seen = QueueFacts(queue="orders", waiting=4440, journaled=320, seen_ago=12.0)
    gateway = Process("http://gateway:8080", True, {})

    verdict = said(
        seen,
        broker="RabbitMQ",
        broker_trouble="connection refused",
        journaled=320,
        journal_full_in=10_800.0,
        gateways=Asked(processes=(gateway,), named=True),
    )

    assert verdict.sentence == (
        "RabbitMQ unreachable, new messages are accepted all the same, full in 3 h;"
        " 4,440 waiting when last seen 12 s ago (320 in journals), none lost."
    )


def test_with_nothing_left_to_ask_nothing_is_guessed() -> None:
    silent = Asked(silent=(("http://gateway:8080", "connection refused"),), named=True)

    verdict = said(
        broker="Kafka", broker_trouble="gone", database="MySQL", database_trouble="gone", gateways=silent
    )

    assert verdict.sentence == (
        "Kafka unreachable, and no gateway answers; MySQL unreachable; how many wait is not known."
    )


@pytest.mark.parametrize(("named", "ok"), [(True, False), (False, True)])
def test_only_a_gateway_that_the_settings_name_is_missed(named: bool, ok: bool) -> None:
    assert said(gateways=Asked(silent=(("http://a:1", "refused"),), named=named)).ok is ok


def test_a_queue_that_drains_is_not_paused_whatever_an_old_report_says() -> None:
    assert said(replace(queue(-100.0), pause=Pause(reason="connection refused"))).ok


# ---- what the looks tell


def depth(waiting: int | None, *, oldest: float | None = 60.0, size: int | None = None) -> QueueDepth:
    known = None if waiting is None else 0
    told = Depth(waiting=waiting, scheduled=known, in_hand=known, bytes=size, oldest_age=oldest)
    return QueueDepth("orders", told, None, broker="b")


def look(at: float, *depths: QueueDepth, **more: object) -> Look:
    return replace(Look(at=at, depths=list(depths)), **more)  # type: ignore[arg-type]  # as named


def found(before: Look, after: Look, room: int | None = None) -> Facts:
    return facts(
        before,
        after,
        broker="RabbitMQ",
        database="PostgreSQL",
        in_database=lambda queue: True,
        room=lambda of_queue, of_all: room,
        now=NOW,
    )


def process(address: str, **samples: float) -> Process:
    """Samples of the queue orders: `accepted` of a gateway, the others of a consumer."""
    names = {
        "accepted": ("forebay_gateway_messages_total", {"queue": "orders", "outcome": "accepted"}),
        "stored": ("forebay_consumer_messages_total", {"queue": "orders", "outcome": "stored"}),
        "unavailable": ("forebay_consumer_queue_paused", {"queue": "orders", "reason": "unavailable"}),
        "paused_for": ("forebay_consumer_queue_paused_seconds", {"queue": "orders"}),
        "next_try": ("forebay_consumer_next_try_seconds", {"queue": "orders"}),
        "journal": ("forebay_journal_messages", {}),
    }
    told = {(names[n][0], frozenset(names[n][1].items())): v for n, v in samples.items()}
    return Process(address, True, told, frozenset(n.removesuffix("_total") for n, _ in told))


def asked(*processes: Process) -> Asked:
    return Asked(processes=processes)


def test_paces_are_those_of_processes_that_were_there_both_times() -> None:
    """One that was started anew counts from zero."""
    before = look(
        0.0,
        depth(9),
        gateways=asked(process("a", accepted=100), process("b", accepted=50)),
        consumers=asked(process("c", stored=900)),
    )
    after = look(
        2.0,
        depth(5),
        gateways=asked(process("a", accepted=140), process("new", accepted=7_000)),
        consumers=asked(process("c", stored=60)),
    )

    (one,) = found(before, after).queues

    assert (one.coming, one.leaving, one.change, one.drained_in) == (20.0, 30.0, -2.0, 2.5)


def test_nobody_to_ask_is_no_pace() -> None:
    (one,) = found(look(0.0, depth(5)), look(1.0, depth(5))).queues

    assert (one.coming, one.leaving) == (None, None)


def test_a_broker_that_cannot_tell_is_not_guessed() -> None:
    blind = depth(None, oldest=None)
    told = found(look(0.0, blind), look(1.0, blind))

    assert (told.queues[0].waiting, told.queues[0].change) == (None, None)
    assert not judge(told, now=NOW).ok


def test_a_queue_is_full_when_the_room_is_used_up_at_this_pace() -> None:
    (one,) = found(look(0.0, depth(1, size=1_000)), look(1.0, depth(2, size=2_000)), room=60_000).queues

    assert one.full_in == 60.0


def test_what_is_in_journals_waits_as_well() -> None:
    told = found(look(0.0, depth(4), journaled={"orders": 3}), look(1.0, depth(4), journaled={"orders": 3}))

    assert (told.queues[0].waiting, told.queues[0].journaled, told.journaled) == (7, 3, 3)


def test_a_consumer_knows_since_when_and_what_next() -> None:
    paused = process("c", unavailable=1, paused_for=120, next_try=5)
    down = Stored(trouble="connection refused")
    told = found(look(0.0, depth(4)), look(1.0, depth(4), stored=down, consumers=asked(paused)))

    assert told.queues[0].pause == Pause(
        reason="PostgreSQL unreachable", since=NOW - timedelta(minutes=2), next_try_in=5
    )


def test_what_consumers_say_now_beats_what_they_reported() -> None:
    going = process("c", unavailable=0)
    reported = Stored(paused={"orders": "connection refused"})
    told = found(look(0.0, depth(4)), look(1.0, depth(4), stored=reported, consumers=asked(going)))

    assert told.queues[0].pause is None


def test_an_operator_is_obeyed_in_a_moment() -> None:
    going = process("c", unavailable=0)
    control = Control(
        queue="orders", paused=True, paused_by="operator", reason="moving", changed_by="ann@host",
        changed_at=NOW - timedelta(minutes=2),
    )  # fmt: skip
    reported = Stored(controls={"orders": control})
    told = found(look(0.0, depth(4)), look(1.0, depth(4), stored=reported, consumers=asked(going)))

    since = (NOW - timedelta(minutes=2)).astimezone()
    assert judge(told, now=NOW).sentence == (
        f"orders paused: by ann@host (moving) since {since:%H:%M};"
        " 4 waiting, none lost; to go on: forebay resume orders."
    )


def test_without_broker_there_is_what_a_consumer_saw_last() -> None:
    seen = {
        "orders": LastSeen(held=40, exact=True, age=12.0),
        "orders.dead": LastSeen(held=2, exact=True, age=9.0),
    }
    gone = look(
        1.0,
        broker_trouble="connection refused",
        stored=Stored(last_seen=seen),
        gateways=asked(process("a", journal=3)),
    )

    told = found(look(0.0, depth(40)), gone)

    (one,) = told.queues
    assert (one.waiting, one.dead, one.seen_ago, told.journaled) == (40, 2, 12.0, 3)
