"""What operators say about queues is kept, and two who speak at once do not undo each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from forebay.storage import controls, suspects
from forebay.storage.database import Database
from forebay.storage.suspects import Suspect


def test_a_queue_that_nobody_spoke_of_has_no_control(database: Database) -> None:
    assert controls.read(database) == {}


def test_pause_and_resume(database: Database) -> None:
    paused = controls.pause(database, "orders", reason="moving", by="ann@host")
    assert (paused.paused, paused.paused_by, paused.reason, paused.changed_by) == (
        True,
        "operator",
        "moving",
        "ann@host",
    )
    assert controls.read(database) == {"orders": paused}

    resumed = controls.resume(database, "orders", by="bob@host", allowance=10)
    assert (resumed.paused, resumed.paused_by, resumed.resumes, resumed.allowance) == (False, None, 1, 10)
    assert controls.resume(database, "orders", by="bob@host").allowance is None


def test_a_rate_and_a_pause_do_not_touch_each_other(database: Database) -> None:
    controls.throttle(database, "orders", rate=50.0, by="ann")
    assert controls.pause(database, "orders", by="ann").rate == 50.0
    assert controls.throttle(database, "orders", rate=None, by="ann").paused


def test_a_consumer_pauses_a_suspicious_queue(database: Database) -> None:
    tripped = controls.trip(database, "orders", reason="30 of 40 given up", by="host:1", resumes=0)
    assert (tripped.paused, tripped.paused_by) == (True, "suspicious")


def test_a_consumer_does_not_pause_again_what_was_resumed_since(database: Database) -> None:
    controls.resume(database, "orders", by="ann")
    assert not controls.trip(database, "orders", reason="old news", by="host:1", resumes=0).paused


def test_a_consumer_does_not_take_an_operators_pause_for_its_own(database: Database) -> None:
    controls.pause(database, "orders", reason="moving", by="ann")
    found = controls.trip(database, "orders", reason="too many", by="host:1", resumes=0)
    assert (found.paused_by, found.reason) == ("operator", "moving")


def test_two_at_once_lose_neither_word(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        for call in [
            pool.submit(controls.resume, database, "orders", by="ann"),
            pool.submit(controls.resume, database, "orders", by="bob"),
            pool.submit(controls.throttle, database, "orders", rate=5.0, by="ann"),
        ]:
            call.result()
    found = controls.read(database)["orders"]
    assert (found.resumes, found.rate) == (2, 5.0)


def test_suspects_are_counted_and_forgotten(database: Database) -> None:
    suspects.accuse(database, [("orders", "a"), ("orders", "b"), ("clicks", "c")], alone=False)
    suspects.accuse(database, [("orders", "a")], alone=True)

    assert suspects.read(database, ["orders"]) == {
        ("orders", "a"): Suspect(crashes=2, alone=1),
        ("orders", "b"): Suspect(crashes=1, alone=0),
    }
    suspects.acquit(database, [("orders", "a"), ("orders", "gone")])
    assert suspects.read(database, ["orders", "clicks"]).keys() == {("orders", "b"), ("clicks", "c")}


def test_a_suspicion_that_nobody_clears_ends_by_age(database: Database) -> None:
    suspects.accuse(database, [("orders", "a")], alone=False)
    assert suspects.forget(database, older_than=60.0) == 0
    assert suspects.forget(database, older_than=-60.0) == 1
    assert suspects.read(database, ["orders"]) == {}
