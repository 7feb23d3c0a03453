"""Messages in AMQP's properties and headers, and other people's messages."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties

from forebay.brokers.api import Death, Failure
from forebay.brokers.rabbitmq import wire
from forebay.errors import MessageDecodeError
from forebay.ids import new_id
from forebay.message import Alike, Message

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
MESSAGE = Message(id="00000000-0000-7000-8000-000000000001", body=b"\x00", accepted_at=NOW, key="k")


def properties(message: Message, **more: Any) -> BasicProperties:
    """What pika reads of what we wrote."""
    read: BasicProperties = BasicProperties().decode(wire.properties(message, **more))
    return read


def test_id_and_content_type_are_properties_that_other_clients_read() -> None:
    p = properties(MESSAGE)
    assert (p.message_id, p.content_type, p.delivery_mode) == (MESSAGE.id, "application/octet-stream", 2)
    assert p.timestamp == int(NOW.timestamp())
    assert wire.decode(p, MESSAGE.body).message == MESSAGE


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        replace(MESSAGE, key=None),
        replace(MESSAGE, headers={"source": "shop", "größe": "ü"}, content_type="application/json"),
        replace(MESSAGE, accepted_at=datetime(1969, 12, 31, 23, 59, 59, 5, tzinfo=UTC)),
        replace(MESSAGE, content_type="x/" + "y" * 300),
        replace(MESSAGE, not_before=NOW, expires_at=NOW),
        replace(MESSAGE, headers={"ce-specversion": "1.0", "ce-id": "1"}),
    ],
)
def test_a_message_that_is_published_first_is_written_as_any_other(message: Message) -> None:
    assert wire.first(message) == wire.properties(message)
    alike = Alike(message, [new_id(), message.id, "short"], [b"1", b"2", b"3"])
    assert wire.firsts(alike) == [wire.first(m) for m in alike]


def test_a_content_type_too_long_for_the_property_arrives_all_the_same() -> None:
    long = Message(id="i", body=b"", accepted_at=NOW, content_type="x/" + "y" * 300)
    p = properties(long)
    assert p.content_type is None
    assert wire.decode(p, b"").message == long


def test_attempt_death_and_due_time_travel_along() -> None:
    death = Death(failure=Failure(reason="r", error_class="E"), queue="q", attempts=3, died_at=NOW)
    p = properties(MESSAGE, attempt=3, death=death, due=12_345)
    decoded = wire.decode(p, b"\x00")
    assert (decoded.attempt, decoded.death, wire.due(p)) == (3, death, 12_345)


@pytest.mark.parametrize("text", ["soon", "-1", 7, None])
def test_an_unreadable_due_time_is_none(text: object) -> None:
    assert wire.due(BasicProperties(headers={wire.DUE: text})) is None


def test_headers_that_the_protocol_cannot_carry_are_refused() -> None:
    longest = "n" * (255 - len("forebay-meta-"))
    with pytest.raises(ValueError, match="has 256 bytes; RabbitMQ takes at most 255"):
        wire.properties(replace(MESSAGE, headers={longest + "n": ""}))
    with pytest.raises(ValueError, match="at most 100000"):
        wire.check(wire.properties(replace(MESSAGE, headers={"n": "v" * 100_000})))
    fits = replace(MESSAGE, headers={longest: "ä" * 1000})
    assert wire.decode(properties(fits), MESSAGE.body).message == fits
    assert wire.check(wire.properties(fits)) == wire.properties(fits)


@pytest.mark.parametrize(
    "foreign",
    [
        BasicProperties(),
        BasicProperties(headers={"forebay-v": "1"}),
        BasicProperties(message_id="x", headers={"forebay-v": "1", "forebay-accepted-at": "yesterday"}),
    ],
)
def test_a_foreign_message_is_told_and_becomes_a_dead_letter_with_its_bytes(foreign: BasicProperties) -> None:
    with pytest.raises(MessageDecodeError) as caught:
        wire.decode(foreign, b"\xff")
    dead = wire.adopt(foreign, b"\xff", "orders", caught.value)
    assert dead.message.body == b"\xff"
    assert dead.death is not None
    assert (dead.death.queue, dead.death.failure.error_class) == ("orders", "MessageDecodeError")
    # What was adopted is one of ours from now on.
    again = wire.decode(properties(dead.message, death=dead.death), b"\xff")
    assert again.message == dead.message


def test_a_foreign_message_keeps_its_headers_but_not_the_servers() -> None:
    p = BasicProperties(
        headers={"Trace": "t", "n": 5, "x-death": [{"count": 1}], "list": [1]}, timestamp=10**18
    )
    dead = wire.adopt(p, b"", "orders", MessageDecodeError("no"))
    assert dict(dead.message.headers) == {"trace": "t", "n": "5"}


EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/shop",
    "ce-type": "t",
    "ce-subject": "caf%C3%A9",
}


def test_an_event_has_its_attributes_as_the_amqp_binding_names_them() -> None:
    """Beside our own headers, which come back as they were."""
    event = replace(MESSAGE, headers={**EVENT, "other": "x"}, content_type="application/json")
    p = properties(event)
    native = {n: v for n, v in p.headers.items() if n.startswith("cloudEvents:")}
    assert native == {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": "1",
        "cloudEvents:source": "/shop",
        "cloudEvents:type": "t",
        "cloudEvents:subject": "caf\u00e9",
    }
    assert p.content_type == "application/json"
    assert wire.decode(p, MESSAGE.body).message == event


def test_what_is_no_event_gets_no_attributes() -> None:
    p = properties(replace(MESSAGE, headers={"ce-type": "only a header"}))
    assert not [n for n in p.headers if n.startswith("cloudEvents")]


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
def test_another_clients_event_is_adopted_with_its_attributes(prefix: str) -> None:
    headers = {prefix + n[3:]: "caf\u00e9" if n == "ce-subject" else v for n, v in EVENT.items()}
    props = BasicProperties(headers={**headers, "other": "x"})
    adopted = wire.adopt(props, b"", "orders", MessageDecodeError("foreign"))
    assert adopted.message.headers == {**EVENT, "other": "x"}
