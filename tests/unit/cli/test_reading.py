"""`forebay message`, `queues`, `status` and `prune` on a real database and a real embedded queue."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from forebay.brokers.api import Depth, Finding, Share
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.cli import _common
from forebay.storage.once import claim
from forebay.storage.reports import QueueReport, exchange, withdraw
from tests.unit.cli.installation import NOW, Done, Installation, dead, delivery


def test_a_stored_message_says_where_and_when(site: Installation) -> None:
    stored = delivery(attempt=3)
    site.store(stored)

    found = site.run("message", stored.message.id, "--json").json

    assert (found["state"], found["queue"], found["attempts"]) == ("stored", "orders", 3)


def test_a_handled_message_was_not_stored_but_handled(site: Installation) -> None:
    handled = delivery()
    with site.database() as database, database.begin() as connection:
        claim(connection, "python:shop:handle", [handled])

    done = site.run("message", handled.message.id)

    assert "is done: handled" in done.out
    assert "handled at" in done.out
    assert "stored at" not in done.out


def test_a_dead_message_says_why_and_how_to_send_it_back(site: Installation) -> None:
    letter = dead(reason="23514 CheckViolation")
    site.archive(letter)

    done = site.run("message", letter.message.id)

    assert done.code == 0
    assert "23514 CheckViolation" in done.out
    assert f"forebay dead-letters redrive --id {letter.message.id}" in done.out


def test_an_unknown_message_has_two_explanations(site: Installation) -> None:
    done = site.run("message", delivery().message.id)

    assert done.code == 4
    assert "still waits in its queue" in done.err
    assert "ever accepted it" in done.err


def test_an_id_that_is_none_is_a_usage_error(site: Installation) -> None:
    assert site.run("message", "42").code == 2


def test_a_warning_is_the_verdict_of_doctor_and_no_failure(site: Installation) -> None:
    """No queue is named here."""
    done = site.run("doctor", "--json")

    assert {f["verdict"] for f in done.json["findings"]} == {"ok", "warn"}
    assert (done.code, done.json["verdict"]) == (0, "warn")


def test_queues_shows_what_waits_and_what_is_dead(site: Installation) -> None:
    site.publish("orders", *[delivery(b"x" * 10).message for _ in range(3)])
    site.kill_one()

    (found,) = site.run("queues", "--json").json

    assert site.run("queues").out.split()[:4] == ["queue", "waiting", "scheduled", "in"]
    assert (found["queue"], found["waiting"], found["dead"], found["bytes"]) == ("orders", 2, 1, 20)


def test_a_queue_that_is_only_in_the_settings_is_listed_too(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_QUEUE_NAMES", "clicks")

    done = site.run("queues")

    assert done.code == 0
    assert "clicks is in the settings but not on the broker yet" in done.err


@pytest.fixture
def old(site: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The installation before a swap: its broker is the one to drain."""
    monkeypatch.setenv("FOREBAY_BROKER__DRAIN", f"sqlite:///{site.folder}/queue.db")
    monkeypatch.setenv("FOREBAY_BROKER__URL", f"sqlite:///{site.folder}/new.db")
    new = BrokerSettings.model_validate({"url": f"sqlite:///{site.folder}/new.db"})

    async def declare() -> None:
        async with open_broker(new) as broker:
            await broker.declare("orders")

    asyncio.run(declare())
    return site


def test_queues_shows_what_is_left_on_an_old_broker(old: Installation) -> None:
    old.publish("orders", delivery().message, delivery().message)

    new_one, old_one = old.run("queues", "--json").json
    text = old.run("queues").out

    assert [(d["queue"], d["waiting"], d["draining"]) for d in (new_one, old_one)] == [
        ("orders", 0, False),
        ("orders", 2, True),
    ]
    assert f"embedded queue {old.folder}/queue.db (draining)" in text


def test_status_counts_what_is_left_on_an_old_broker(old: Installation) -> None:
    old.publish("orders", dataclasses.replace(delivery().message, accepted_at=NOW - timedelta(minutes=1)))

    done = old.run("status", "--interval", "100ms")

    assert f"Standing still: 1 message on orders on embedded queue {old.folder}/queue.db" in done.out


def test_an_old_broker_that_cannot_be_asked_hides_nothing_of_the_one_in_use(
    old: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_BROKER__DRAIN", "sqlite:///nowhere.db")

    queues, status = old.run("queues"), old.run("status", "--interval", "100ms")

    assert (queues.code, status.code) == (0, 6)
    assert "orders" in queues.out
    assert f"the old broker sqlite:///{old.folder}/nowhere.db cannot be asked" in queues.err
    assert status.out.startswith("the old broker")


def test_verify_cannot_give_up_on_what_may_be_on_an_old_broker(old: Installation) -> None:
    sent = delivery()
    old.publish("orders", sent.message)

    ledger = old.run("verify", old.record(sent), "--json").json

    assert ledger["held_by_queues"] == 1


def finding(done: Done, check: str) -> dict[str, str]:
    (found,) = [f for f in done.json["findings"] if f["check"] == check]
    return dict(found)


def test_doctor_tells_what_is_left_on_an_old_broker_and_when_it_is_empty(old: Installation) -> None:
    empty = finding(old.run("doctor", "--json"), "drain")
    old.publish("orders", delivery().message, delivery().message)
    full = finding(old.run("doctor", "--json"), "drain")

    assert empty["text"] == f"sqlite:///{old.folder}/queue.db is empty"
    assert "take it out of broker.drain" in empty["fix"]
    assert full["text"].endswith("is drained; 2 messages are left")


def test_doctor_fails_for_an_old_broker_that_cannot_be_asked(
    old: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_BROKER__DRAIN", "sqlite:///nowhere.db")

    found = finding(old.run("doctor", "--json"), "drain")

    assert found["verdict"] == "fail"
    assert "nothing on it is consumed" in found["text"]


def test_doctor_warns_of_a_broker_that_was_left_with_messages(site: Installation) -> None:
    left = Depth(waiting=7, scheduled=0, in_hand=0, bytes=0, oldest_age=60.0)
    with site.database() as database:
        report = QueueReport(
            broker="rabbit", url="amqp://u:***@h", queue="orders", share=Share(in_hand=0), depth=left
        )
        exchange(database, "host:1", [report], tidy=True)
        withdraw(database, "host:1")

    found = finding(site.run("doctor", "--json"), "other broker")

    assert found["verdict"] == "warn"
    assert found["text"].startswith("rabbit held 7 messages (orders) when a consumer last looked")
    assert found["fix"] == 'broker.drain = ["amqp://u:***@h"]'


def test_doctor_fails_when_the_broker_cannot_keep_the_least_durability(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_GATEWAY__MIN_DURABILITY", "replicated")

    found = finding(site.run("doctor", "--json"), "durability")

    assert found["verdict"] == "fail"
    assert "gateway.min_durability is 'replicated', so the gateway does not start" in found["text"]


def test_doctor_passes_on_what_the_driver_finds(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(self: SQLiteBroker, queues: Sequence[str]) -> list[Finding]:
        return [Finding(check="queue orders", verdict="warn", text=f"seen {', '.join(queues)}", fix="do it")]

    monkeypatch.setattr(SQLiteBroker, "examine", examine)

    assert finding(site.run("doctor", "--json"), "queue orders")["text"] == "seen orders"


def test_an_old_broker_that_no_driver_reads_is_found_by_config_check(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_BROKER__DRAIN", "ampq://u:pa55@h")

    done = site.run("config", "check")

    assert done.code == 2
    assert "broker.drain: broker.url begins with 'ampq', which no driver reads" in done.err
    assert "pa55" not in done.err


class Mute:
    """A broker that tells what waits, and nothing else."""

    identity = "mute"

    async def depth(self, queue: str) -> Depth:
        waiting = 0 if queue.endswith(".dead") else 4
        return Depth(
            waiting=waiting, scheduled=0, in_hand=None, bytes=None, oldest_age=None, unknown="it is mute"
        )

    async def declared_queues(self) -> list[str]:
        return ["orders"]


@pytest.fixture
def mute(site: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    @asynccontextmanager
    async def opened(settings: object) -> AsyncIterator[Mute]:
        yield Mute()

    monkeypatch.setattr(_common, "open_broker", opened)
    return site


def test_what_a_broker_cannot_tell_comes_from_its_consumers_with_its_age(mute: Installation) -> None:
    places = [("orders", Share(in_hand=3, oldest_age=8.0)), ("orders.dead", Share(in_hand=0))]
    with mute.database() as database:
        reports = [
            QueueReport(broker="mute", url="amqp://mute", queue=queue, share=share, depth=None)
            for queue, share in places
        ]
        exchange(database, "host:1", reports, tidy=True)

    (found,) = mute.run("queues", "--json").json
    text = mute.run("queues").out

    assert [found[k] for k in ("waiting", "in_hand", "dead", "oldest_age")] == [4, 3, 0, 8.0]
    assert found["reported"] == ["in_hand", "oldest_age", "dead"]
    assert 0 <= found["reported_age"] < 15
    assert "in_hand, oldest_age, dead: " in text


def test_what_nobody_tells_is_null_with_the_reason(
    mute: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = mute.run("queues")
    (found,) = mute.run("queues", "--json").json
    monkeypatch.delenv("FOREBAY_DATABASE__URL")
    blind = mute.run("queues")

    assert (found["in_hand"], found["dead"], found["reported_age"]) == (None, None, None)
    assert found["unknown"] == "it is mute; no consumer has reported"
    assert "– is not known (orders): it is mute; no consumer has reported" in plain.err
    assert "database.url, where consumers report the rest, is not set here" in blind.err


def test_status_is_fine_when_nothing_waits(site: Installation) -> None:
    done = site.run("status", "--interval", "100ms")

    assert (done.code, done.out) == (0, "All fine: nothing is behind.\n")


def test_status_names_a_database_that_does_not_answer(site: Installation) -> None:
    (site.folder / "forebay.db").write_bytes(b"not a database" * 100)

    done = site.run("status", "--interval", "100ms")

    assert done.code == 7
    assert done.out.startswith("orders paused: SQLite unreachable; 0 waiting, none lost.")
    assert "warning: SQLite: " in done.err


def test_status_says_where_a_consumer_tells_why_nothing_moves(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("orders", dataclasses.replace(delivery().message, accepted_at=NOW - timedelta(minutes=1)))

    plain = site.run("status", "--interval", "100ms")
    monkeypatch.setenv("FOREBAY_CONSUMER__HEALTH_PORT", "9100")
    monkeypatch.delenv("FOREBAY_DATABASE__URL")
    known = site.run("status", "--interval", "100ms")

    assert (plain.code, known.code) == (1, 1)
    assert "No consumer has reported lately; does one run? Then its log says why it waits" in plain.out
    assert "started with --port. The database answers." in plain.out
    assert "http://127.0.0.1:9100/readyz?verbose" in known.out
    assert "The database was not asked: database.url is not set here." in known.out


def test_status_counts_open_dead_letters(site: Installation) -> None:
    site.archive(dead())

    assert "1 message given up" in site.run("status", "--interval", "100ms").out


@pytest.mark.parametrize(
    "command",
    [
        ("queues",),
        ("status",),
        ("message", "0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e"),
        ("dead-letters", "list"),
        ("prune", "--dry-run"),
    ],
)
def test_a_reading_command_creates_no_file(
    site: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("FOREBAY_BROKER__URL", "sqlite:///data/queue.db")
    monkeypatch.setenv("FOREBAY_DATABASE__URL", "sqlite:///data/forebay.db")

    done = site.run(*command)

    assert done.code in (6, 7)
    assert "creates it" in done.err
    assert list(empty.iterdir()) == []


def test_prune_tells_what_it_would_delete_and_deletes_it_when_told(site: Installation) -> None:
    site.store(delivery(), delivery())
    site.archive(dead())

    would = site.run("prune", "--older-than", "0s", "--dry-run", "--json").json
    refused = site.run("prune", "--older-than", "0s")
    did = site.run("prune", "--older-than", "0s", "--yes", "--json").json

    assert (would["messages"], would["dead_letters"], would["dry_run"]) == (2, 0, True)
    assert refused.code == 2
    assert (did["messages"], did["dry_run"]) == (2, False)
    assert site.run("prune", "--older-than", "0s", "--dry-run", "--json").json["messages"] == 0


def test_prune_wants_to_know_the_unit(site: Installation) -> None:
    """90 is 90 seconds elsewhere; who meant days would lose everything."""
    site.store(delivery())

    done = site.run("prune", "--older-than", "0", "--yes")

    assert done.code == 2
    assert "say the unit" in done.err
    assert site.run("prune", "--older-than", "0s", "--dry-run", "--json").json["messages"] == 1


def test_prune_keeps_messages_unless_an_age_is_given(site: Installation) -> None:
    stored, letter = delivery(), dead()
    site.store(stored)
    site.archive(letter)
    site.run("dead-letters", "discard", "--all", "--yes")

    did = site.run("prune", "--resolved-older-than", "0s", "--yes", "--json").json

    assert (did["messages"], did["dead_letters"]) == (0, 1)
    assert site.run("message", stored.message.id).code == 0


def test_a_url_given_as_a_flag_wins(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = delivery()
    site.store(stored)
    monkeypatch.setenv("FOREBAY_BROKER__URL", "sqlite:///elsewhere.db")
    monkeypatch.setenv("FOREBAY_DATABASE__URL", "sqlite:///elsewhere.db")
    broker, database = (f"sqlite:///{site.folder}/{name}.db" for name in ("queue", "forebay"))

    assert site.run("queues", "--broker-url", broker).code == 0
    assert site.run("message", stored.message.id, "--database-url", database).code == 0


def test_operators_pause_resume_and_throttle(site: Installation) -> None:
    paused = site.run("pause", "orders", "--reason", "moving", "--json").json
    assert (paused["paused"], paused["reason"]) == (True, "moving")
    assert "moving" in site.run("status").out
    assert site.run("throttle", "orders", "0.5", "--json").json["rate"] == 0.5
    assert site.run("throttle", "orders", "off", "--json").json["rate"] is None
    resumed = site.run("resume", "orders", "--allow-dead-letters", "7", "--json").json
    assert (resumed["paused"], resumed["allowance"]) == (False, 7)
    assert site.run("throttle", "orders", "soon").code == 2
