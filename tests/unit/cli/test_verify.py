"""`forebay verify` against a real embedded queue and a real SQLite database."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from forebay import ids
from forebay.brokers.api import Delivery
from forebay.storage.once import claim
from tests.unit.cli.installation import Installation, dead, delivery


def test_everything_stored_once_adds_up(site: Installation) -> None:
    sent = [delivery(b"%d" % n) for n in range(7)]
    site.store(*sent)

    done = site.run("verify", site.record(*sent), "--json")

    assert done.code == 0
    figures = done.json
    assert figures["adds_up"]
    assert (figures["recorded"], figures["stored"]) == (7, 7)
    for name in ("done", "dead", "discarded", "waiting", "lost", "duplicated", "altered"):
        assert figures[name] == 0
    assert figures["attempts"] == {"1": 7}


def test_a_message_that_is_nowhere_is_lost_and_named(site: Installation) -> None:
    here, gone = delivery(b"here"), delivery(b"gone")
    site.store(here)

    done = site.run("verify", site.record(here, gone))

    assert done.code == 1
    assert gone.message.id in done.err
    assert "lost        1" in done.out


def test_a_message_in_its_queue_waits(site: Installation) -> None:
    waiting = delivery(b"waiting")
    site.publish("orders", waiting.message)

    done = site.run("verify", site.record(waiting), "--json")

    assert done.code == 0
    assert (done.json["waiting"], done.json["lost"]) == (1, 0)


def test_a_message_in_the_dead_letter_queue_waits_for_the_archive(site: Installation) -> None:
    given_up = delivery(b"given up")
    site.publish("orders", given_up.message)
    site.kill_one()

    done = site.run("verify", site.record(given_up), "--json")

    assert (done.json["waiting"], done.json["lost"]) == (1, 0)


def test_what_is_missing_beyond_the_depth_of_the_queues_is_lost(site: Installation) -> None:
    missing = [delivery(b"%d" % n) for n in range(3)]
    site.publish("orders", missing[0].message)

    done = site.run("verify", site.record(*missing), "--json")

    assert done.code == 1
    assert (done.json["waiting"], done.json["lost"]) == (1, 2)


def test_other_bytes_under_the_id_are_altered(site: Installation) -> None:
    stored = delivery(b"what is stored")
    site.store(stored)

    done = site.run("verify", site.record(delivery(b"what was sent", id=stored.message.id)))

    assert done.code == 1
    assert f"altered: {stored.message.id}" in done.err


def test_dead_and_discarded_messages_are_accounted_for(site: Installation) -> None:
    given_up = [dead(b"%d" % n) for n in range(3)]
    site.archive(*given_up)
    site.run("dead-letters", "discard", "--id", given_up[0].message.id, "--yes")

    done = site.run("verify", site.record(*given_up), "--json")

    assert done.code == 0
    assert (done.json["dead"], done.json["discarded"]) == (2, 1)


def handle(site: Installation, destination: str, one: Delivery) -> None:
    with site.database() as database, database.begin() as connection:
        assert claim(connection, destination, [one]) == {one.message.id}


def test_handled_messages_are_done(site: Installation) -> None:
    handled = delivery()
    handle(site, "shop:handle", handled)

    done = site.run("verify", site.record(handled), "--json")

    assert done.code == 0
    assert (done.json["done"], done.json["stored"]) == (1, 0)


def test_handled_under_two_destinations_is_duplicated(site: Installation) -> None:
    """The handler was renamed, and the message came again."""
    handled = delivery()
    for destination in ("shop:handle", "shop:renamed"):
        handle(site, destination, handled)

    done = site.run("verify", site.record(handled), "--json")

    assert done.code == 1
    assert (done.json["done"], done.json["duplicated"]) == (1, 1)


def test_other_bytes_handled_under_the_id_are_altered(site: Installation) -> None:
    handled = delivery(b"what was handled")
    handle(site, "shop:handle", handled)

    done = site.run("verify", site.record(delivery(b"what was sent", id=handled.message.id)), "--json")

    assert done.json["altered"] == 1


def test_two_bodies_under_one_key_are_both_visible(site: Installation) -> None:
    """Through two gateways that did not know of each other: both were answered 202."""
    first = delivery(b"first")
    id = first.message.id
    second = dead(
        b"second", id=ids.conflict_id(id, b"second"), error_class="idempotency-conflict", original_id=id
    )
    site.store(first)
    site.archive(second)

    done = site.run("verify", site.record(first, delivery(b"second", id=id)), "--json")

    assert done.code == 0
    figures = done.json
    assert (figures["recorded"], figures["stored"], figures["dead"], figures["conflicts"]) == (2, 1, 1, 1)


def test_stored_and_still_open_among_the_dead_is_duplicated(site: Installation) -> None:
    """A redrive would send it once more."""
    both = dead(b"both")
    site.archive(both)
    with site.database() as database, database.begin() as connection:
        # The stores prevent this; only a bug or a hand in the tables brings it about.
        connection.exec_driver_sql(
            "INSERT INTO messages SELECT id, queue, key, content_type, headers, NULL, body, accepted_at,"
            " died_at, 1 FROM dead_letters"
        )

    done = site.run("verify", site.record(both))

    assert done.code == 1
    assert f"duplicated: {both.message.id}" in done.err


def test_attempts_burned_show_up(site: Installation) -> None:
    sent = [delivery(b"a"), delivery(b"b", attempt=3)]
    site.store(*sent)

    done = site.run("verify", site.record(*sent))

    assert "at most 3; 1 needed more than one" in done.out


def test_waiting_ends_as_soon_as_everything_has_arrived(site: Installation) -> None:
    late = delivery(b"late")
    record = site.record(late)
    # In the queue first, so that the wait has something to hope for.
    site.publish("orders", late.message)
    consumer = threading.Timer(0.3, lambda: site.store(late))
    consumer.start()

    done = site.run("verify", record, "--wait", "60s", "--json")
    consumer.join()

    assert done.code == 0
    assert done.json["stored"] == 1


def test_waiting_for_what_cannot_come_any_more_is_given_up_early(site: Installation) -> None:
    """The queues are empty: an hour would change nothing, and the test would not end."""
    done = site.run("verify", site.record(delivery(b"gone")), "--wait", "1h", "--json")

    assert done.code == 1
    assert done.json["lost"] == 1


def test_what_still_waits_when_the_time_is_over_fails(site: Installation) -> None:
    waiting = delivery(b"waiting")
    site.publish("orders", waiting.message)

    done = site.run("verify", site.record(waiting), "--wait", "100ms")

    assert done.code == 1
    assert "1 messages still wait" in done.err


def test_without_its_queues_it_does_not_guess(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_BROKER__URL", f"sqlite:///{site.folder}/elsewhere.db")
    record = site.record(delivery(b"somewhere"))

    done = site.run("verify", record)

    assert done.code == 6
    assert "the queues cannot be asked" in done.err
    assert not (site.folder / "elsewhere.db").exists()


def test_without_its_queues_a_complete_database_is_proof_enough(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_BROKER__URL", f"sqlite:///{site.folder}/elsewhere.db")
    stored = delivery()
    site.store(stored)

    assert site.run("verify", site.record(stored)).code == 0


def test_a_record_that_is_not_there_is_no_loss(site: Installation) -> None:
    """Exit code 1 says that something is lost; this only says that nobody looked."""
    done = site.run("verify", str(site.folder / "nosuch.txt"))

    assert done.code == 2
    assert "nosuch.txt: No such file or directory" in done.err


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\nworld\n"])
def test_a_file_that_is_no_record_proves_nothing(site: Installation, content: bytes) -> None:
    Path("x.txt").write_bytes(content)

    assert site.run("verify", "x.txt").code == 2


def test_a_torn_line_is_said_and_does_not_hide_the_others(site: Installation) -> None:
    stored = delivery()
    site.store(stored)
    record = Path(site.record(stored))
    record.write_bytes(record.read_bytes() + b"0190c0de-1f2a-7c3b")

    done = site.run("verify", str(record))

    assert done.code == 0
    assert "the first is line 2" in done.err
