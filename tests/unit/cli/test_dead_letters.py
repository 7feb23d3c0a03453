"""`forebay dead-letters` on a real database and a real embedded queue."""

from __future__ import annotations

import base64
import json
import time

import pytest

from forebay import ids
from forebay.brokers.api import Ack, Broker
from forebay.message import Message
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from tests.unit.cli.installation import Installation, bodies, dead, delivery


def test_a_list_tells_why_and_names_no_body(site: Installation) -> None:
    letter = dead(b"secret", reason="23514 CheckViolation, constraint positive")
    site.archive(letter)

    done = site.run("dead-letters", "list")

    assert letter.message.id in done.out
    assert "constraint positive" in done.out
    assert "secret" not in done.out + done.err


def test_a_list_can_be_narrowed(site: Installation) -> None:
    young, old = dead(b"young", ago=60), dead(b"old", ago=7_200)
    other = dead(b"other", queue="clicks", error_class="Other")
    site.archive(young, old, other)

    def listed(*args: str) -> set[str]:
        return {one["id"] for one in site.run("dead-letters", "list", "--json", *args).json}

    assert listed() == {young.message.id, old.message.id, other.message.id}
    assert listed("--queue", "clicks") == {other.message.id}
    assert listed("--error-class", "Other") == {other.message.id}
    assert listed("--queue", "orders", "--since", "1h") == {young.message.id}
    assert listed("--before", "1h") == {old.message.id}
    assert listed("--status", "discarded") == set()
    assert len(listed("--limit", "2")) == 2


def test_nothing_to_do_is_said_in_words(site: Installation) -> None:
    site.store()
    for args in (("redrive", "--all", "--yes"), ("discard", "--all", "--yes")):
        assert site.run("dead-letters", *args).out.startswith("nothing to ")
    assert site.run("dead-letters", "list", "--groups").err == "none is dead\n"


def test_groups_count_by_cause(site: Installation) -> None:
    site.archive(
        *[dead(b"%d" % n, reason=f"order {n} is negative") for n in range(3)], dead(reason="something else")
    )

    groups = site.run("dead-letters", "list", "--groups", "--json").json

    assert [group["count"] for group in groups] == [3, 1]


def test_showing_one_has_its_body_readable_and_raw(site: Installation) -> None:
    letter = dead(b'{"a":[1]}')
    site.archive(letter)

    shown = site.run("dead-letters", "show", letter.message.id)
    raw = site.run("dead-letters", "show", letter.message.id, "--raw")

    assert '{\n  "a": [\n    1\n  ]\n}' in shown.out
    assert "the row" in shown.out
    assert raw.out == '{"a":[1]}'


def test_a_binary_body_is_shown_in_hex(site: Installation) -> None:
    letter = dead(b"\xff\x00")
    site.archive(letter)

    assert "ff 00" in site.run("dead-letters", "show", letter.message.id).out


def test_what_is_not_there_is_exit_code_4(site: Installation) -> None:
    unknown = delivery().message.id
    for args in (("show", unknown), ("redrive", "--id", unknown), ("discard", "--id", unknown, "--yes")):
        done = site.run("dead-letters", *args)
        assert (done.code, done.out) == (4, "")
        assert f"no dead letter {unknown} in the database" in done.err


@pytest.mark.parametrize("command", ["redrive", "discard"])
def test_one_unknown_id_among_others_changes_nothing(site: Installation, command: str) -> None:
    letter = dead()
    site.archive(letter)

    done = site.run("dead-letters", command, "--id", letter.message.id, "--id", ids.new_id(), "--yes")

    assert done.code == 4
    assert site.status_of(letter.message.id) == "dead"


def test_a_redrive_sends_the_same_message_back_at_attempt_1(site: Installation) -> None:
    letter = dead(b"\x00exact")
    letter.message.headers = {"origin": "EWR"}
    letter.message.key = "k"
    site.archive(letter)

    done = site.run("dead-letters", "redrive", "--queue", "orders", "--yes")

    assert done.code == 0, done.err
    (back,) = site.receive()
    sent = letter.message
    assert (back.message.id, back.message.body, back.attempt) == (sent.id, sent.body, 1)
    assert (back.message.headers, back.message.key) == ({"origin": "EWR"}, "k")
    assert back.message.content_type == sent.content_type
    assert back.death is None
    assert site.status_of(sent.id) == "redriving"


def test_a_redriven_message_that_arrives_is_resolved(site: Installation) -> None:
    letter = dead()
    site.archive(letter)
    site.run("dead-letters", "redrive", "--all", "--yes")

    site.store(*site.receive())

    assert site.status_of(letter.message.id) == "resolved"


def test_a_redrive_of_nothing_new_sends_nothing(site: Installation) -> None:
    site.archive(dead())
    for _ in range(2):
        done = site.run("dead-letters", "redrive", "--all", "--yes", "--json")

    assert done.json == {"dry_run": False, "count": 0} or done.json.get("count") == 0
    assert len(site.receive()) == 1


def test_a_dry_run_tells_the_exact_count_and_changes_nothing(site: Installation) -> None:
    letters = [dead(b"%d" % n) for n in range(5)]
    site.archive(*letters)

    done = site.run("dead-letters", "redrive", "--all", "--dry-run", "--json")

    assert done.json["count"] == 5
    assert site.receive() == []
    assert {site.status_of(one.message.id) for one in letters} == {"dead"}


@pytest.mark.parametrize("command", ["redrive", "discard"])
def test_bulk_changes_ask_and_nobody_is_there_to_answer(site: Installation, command: str) -> None:
    letter = dead()
    site.archive(letter)

    done = site.run("dead-letters", command, "--all")

    assert done.code == 2
    assert "1 " in done.err
    assert "--yes" in done.err
    assert site.status_of(letter.message.id) == "dead"


@pytest.mark.parametrize("command", ["redrive", "discard"])
def test_bulk_changes_want_a_choice(site: Installation, command: str) -> None:
    done = site.run("dead-letters", command, "--yes")

    assert done.code == 2
    assert "--all" in done.err


def test_only_what_was_chosen_is_sent(site: Installation) -> None:
    one, other = dead(b"one"), dead(b"other")
    site.archive(one, other)

    site.run("dead-letters", "redrive", "--id", one.message.id, "--yes")

    assert bodies(site.receive()) == [b"one"]
    assert site.status_of(other.message.id) == "dead"


def test_a_limit_takes_the_oldest(site: Installation) -> None:
    site.archive(*[dead(b"%d" % n, ago=100 - n) for n in range(5)])

    site.run("dead-letters", "redrive", "--all", "--limit", "2", "--no-canary", "--yes")

    assert bodies(site.receive()) == [b"0", b"1"]


def test_a_canary_that_nobody_consumes_pauses_and_can_be_gone_on_with(site: Installation) -> None:
    letters = [dead(b"%d" % n, ago=100 - n) for n in range(3)]
    site.archive(*letters)

    paused = site.run("dead-letters", "redrive", "--all", "--wait", "0", "--yes", "--json")

    assert (paused.code, paused.json["state"], paused.json["sent"]) == (8, "paused", 1)
    assert "does a consumer run" in paused.err
    job = paused.json["job"]
    site.store(*site.receive())
    done = site.run("dead-letters", "redrive", "--resume", job, "--wait", "0", "--json")
    assert (done.code, done.json["state"], done.json["sent"]) == (0, "done", 3)
    assert f"--resume {job}" in paused.err
    assert "done" in site.run("dead-letters", "jobs", job).out
    assert site.run("dead-letters", "redrive", "--resume", job).code == 5


def test_a_redrive_can_be_ended(site: Installation) -> None:
    site.archive(*[dead(b"%d" % n) for n in range(3)])
    paused = site.run("dead-letters", "redrive", "--all", "--wait", "0", "--yes", "--json").json

    stopped = site.run("dead-letters", "redrive", "--stop", paused["job"])

    assert (stopped.code, stopped.out) == (0, f"redrive job {paused['job']} is stopped: 1 of 3 were sent\n")
    listed = site.run("dead-letters", "jobs", "--json").json
    assert [(one["id"], one["state"]) for one in listed] == [(paused["job"], "stopped")]


def test_the_same_selection_is_not_redriven_by_two(site: Installation) -> None:
    site.archive(*[dead(b"%d" % n) for n in range(3)])
    first = site.run("dead-letters", "redrive", "--all", "--wait", "0", "--yes", "--json").json

    second = site.run("dead-letters", "redrive", "--all", "--yes")

    assert second.code == 5
    assert f"redrive job {first['job']} of " in second.err
    assert len(site.receive()) == 1


def test_an_edit_sends_a_new_message_and_each_points_to_the_other(site: Installation) -> None:
    letter = dead(b'{"customer": {"id": "x"}, "price": 1.50}')
    site.archive(letter)

    wanted = ("dead-letters", "edit", letter.message.id, "--set", "/customer/id=42")
    dry = site.run(*wanted, "--dry-run")
    done = site.run(*wanted, "--yes", "--json")

    assert '-    "id": "x"\n+    "id": 42' in dry.out
    assert done.code == 0, done.err
    (sent,) = site.receive()
    assert (sent.message.id, sent.message.body) == (
        done.json["new_id"],
        b'{"customer":{"id":42},"price":1.5}',
    )
    assert sent.message.headers["edited-from"] == letter.message.id
    (old,) = site.run("dead-letters", "show", letter.message.id, "--json").json
    assert (old["status"], old["edited_to"]) == ("discarded", sent.message.id)
    assert old["discard_reason"] == f"edited, sent as {sent.message.id}"
    site.archive(dead(sent.message.body, id=sent.message.id))
    (new,) = site.run("dead-letters", "show", sent.message.id, "--json").json
    assert new["edited_from"] == letter.message.id
    assert site.run(*wanted, "--yes").code == 5


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "--body-file"),
        (("--set", "a"), 2, "POINTER=VALUE"),
        (("--set", "/a/b=1"), 5, "there is no 'a'"),
        (("--set", "/n=1"), 5, "would stay as it is"),
        (("--body-file", "missing.json"), 2, "missing.json"),
    ],
)
def test_an_edit_that_makes_no_sense_changes_nothing(
    site: Installation, args: tuple[str, ...], code: int, says: str
) -> None:
    letter = dead(b'{"n":1}')
    site.archive(letter)

    done = site.run("dead-letters", "edit", letter.message.id, *args, "--yes")

    assert done.code == code
    assert says in done.err
    assert site.status_of(letter.message.id) == "dead"


def test_an_export_is_without_loss(site: Installation) -> None:
    text, binary = dead("é\x00".encode(), ago=20), dead(b"\xff\x00", ago=10)
    site.archive(text, binary)

    done = site.run("dead-letters", "export", "--output", "dead.ndjson")
    again = site.run("dead-letters", "export", "--output", "dead.ndjson")

    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (site.folder / "dead.ndjson").read_text().splitlines()]
    assert [line["id"] for line in lines] == [text.message.id, binary.message.id]
    assert lines[0]["body"].encode() == text.message.body
    assert base64.b64decode(lines[1]["body_base64"]) == binary.message.body
    assert again.code == 2


def test_they_are_found_by_key_and_by_text_in_reason_or_body(site: Installation) -> None:
    one, other = dead(b"needle \xff"), dead(b"hay", reason="Not a NEEDLE")
    one.message.key = "k"
    site.archive(one, other, dead(b"hay"))

    def found(*args: str) -> set[str]:
        return {r["id"] for r in site.run("dead-letters", "list", "--json", *args).json}

    assert found("--text", "needle") == {one.message.id, other.message.id}
    assert found("--key", "k") == {one.message.id}
    assert found("--text", "%") == set()


def test_the_audit_tells_who_did_what(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_OPERATOR", "ann")
    site.archive(dead(b"1"), dead(b"2"))

    site.run("dead-letters", "discard", "--all", "--reason", "a test", "--yes")
    site.run("pause", "orders", "--reason", "moving")

    (paused, discarded) = site.run("audit", "--json").json
    assert (discarded["who"], discarded["action"], discarded["count"]) == ("ann", "discard", 2)
    assert discarded["detail"] == "a test"
    assert (paused["action"], paused["queue"], paused["detail"]) == ("pause", "orders", "moving")
    assert "a test" in site.run("audit", "--action", "discard").out
    (letter, _) = site.run("dead-letters", "list", "--status", "discarded", "--json").json
    assert (letter["discard_reason"], letter["changed_by"]) == ("a test", "ann")


def test_many_pages_are_sent_once_each(site: Installation) -> None:
    letters = [dead(b"%d" % n, ago=n) for n in range(250)]
    site.archive(*letters)

    done = site.run("dead-letters", "redrive", "--all", "--no-canary", "--yes", "--json")

    assert (done.json["state"], done.json["sent"], done.json["failed"]) == ("done", 250, 0)
    assert site.depth().waiting == 250


def test_messages_that_cannot_be_sent_stay_dead(site: Installation) -> None:
    """Their queue is not declared on this broker."""
    gone, here = dead(b"gone", queue="clicks"), dead(b"here")
    site.archive(gone, here)

    done = site.run("dead-letters", "redrive", "--all", "--no-canary", "--yes", "--json")

    assert done.code == 8
    assert (done.json["sent"], done.json["failed"]) == (1, 1)
    assert "clicks" in done.err
    assert site.status_of(gone.message.id) == "dead"


def test_a_redrive_that_was_killed_half_way_can_be_finished(site: Installation) -> None:
    """It had marked the message and not sent it yet."""
    letter = dead()
    site.archive(letter)
    with site.database() as database:
        store = DeadLetterStore(database)
        store.mark(store.list(DeadLetterFilter(), limit=10), status="redriving", expected="dead")

    site.run("dead-letters", "redrive", "--all", "--status", "redriving", "--yes")

    assert len(site.receive()) == 1


def test_sent_back_twice_it_has_one_effect(site: Installation) -> None:
    """The worst that two operators can do."""
    letter = dead()
    site.archive(letter)
    for status in ("dead", "redriving"):
        site.run("dead-letters", "redrive", "--all", "--status", status, "--yes")

    back = site.receive()
    site.store(*back)

    assert len(back) == 2
    figures = site.run("verify", site.record(letter), "--json").json
    assert (figures["stored"], figures["duplicated"]) == (1, 0)


def test_conflicts_are_warned_of(site: Installation) -> None:
    site.archive(dead(error_class="idempotency-conflict"))

    done = site.run("dead-letters", "redrive", "--all", "--dry-run")

    assert "becomes a message of its own" in done.err


def test_the_rate_is_a_ceiling(site: Installation) -> None:
    site.archive(*[dead(b"%d" % n) for n in range(6)])

    began = time.monotonic()
    site.run("dead-letters", "redrive", "--all", "--rate", "2", "--no-canary", "--yes")

    # Three pages of two, one second apart: two waits.
    assert time.monotonic() - began >= 1.9
    assert site.depth().waiting == 6


def test_discarded_ones_stay_readable_and_are_not_sent(site: Installation) -> None:
    letter = dead()
    site.archive(letter)

    done = site.run("dead-letters", "discard", "--all", "--yes", "--json")
    again = site.run("dead-letters", "redrive", "--all", "--yes", "--json")

    assert done.json["discarded"] == 1
    assert again.json["count"] == 0
    assert site.run("dead-letters", "show", letter.message.id).code == 0
    assert json.loads(site.run("dead-letters", "list", "--status", "discarded", "--json").out)


def test_a_redrive_meets_the_queue_as_a_consumer_left_it(site: Installation) -> None:
    """End to end on the broker: given up there, archived, sent back, delivered."""
    message = delivery(b"body").message
    site.publish("orders", message)
    site.kill_one()

    async def archive(broker: Broker) -> list[Message]:
        async with broker.subscribe("orders.dead", prefetch=10) as subscription:
            found = await subscription.receive(10, 5)
            site.archive(*found)
            await subscription.settle([Ack(one) for one in found])
            return [one.message for one in found]

    site.on_broker(archive)
    site.run("dead-letters", "redrive", "--all", "--yes")

    assert [one.message.id for one in site.receive()] == [message.id]
