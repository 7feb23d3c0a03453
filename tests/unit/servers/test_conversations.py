"""The proxies of the fault runs cut right before a message's confirmation, or prove less than they say."""

from __future__ import annotations

import struct

import pytest
from pika import BasicProperties, spec
from pika.frame import Header, Method

from tests.servers.conversations import AMQPConversation, KafkaConversation


def published(routing_key: str) -> bytes:
    publish = Method(1, spec.Basic.Publish(exchange="", routing_key=routing_key)).marshal()
    return bytes(publish + Header(1, 0, BasicProperties()).marshal())


def acknowledged(tag: int, *, multiple: bool = False) -> bytes:
    return bytes(Method(1, spec.Basic.Ack(delivery_tag=tag, multiple=multiple)).marshal())


@pytest.fixture
def amqp() -> AMQPConversation:
    """After the greeting, a canary and two messages, none of them confirmed."""
    conversation = AMQPConversation()
    said = b"AMQP\x00\x00\x09\x01" + b"".join(map(published, ["forebay.canary", "orders", "orders"]))
    for byte in said:  # a stream may come in any pieces
        assert not conversation.asked(bytes([byte]))
    return conversation


def test_the_acknowledgement_of_a_message_is_a_confirmation(amqp: AMQPConversation) -> None:
    assert amqp.answered(acknowledged(2))


def test_the_acknowledgement_of_the_canary_is_none(amqp: AMQPConversation) -> None:
    assert not amqp.answered(acknowledged(1))


def test_an_acknowledgement_of_all_up_to_a_message_is_a_confirmation(amqp: AMQPConversation) -> None:
    assert amqp.answered(acknowledged(3, multiple=True))


def test_a_message_is_confirmed_once(amqp: AMQPConversation) -> None:
    amqp.answered(acknowledged(3, multiple=True))

    assert not amqp.answered(acknowledged(3))


def test_a_refusal_is_an_answer_like_a_confirmation(amqp: AMQPConversation) -> None:
    assert amqp.answered(bytes(Method(1, spec.Basic.Nack(delivery_tag=2)).marshal()))


def test_the_last_byte_of_an_acknowledgement_makes_it_one(amqp: AMQPConversation) -> None:
    frame = acknowledged(2)

    assert [amqp.answered(frame[:-1]), amqp.answered(frame[-1:])] == [False, True]


def request(key: int, correlation: int) -> bytes:
    head = struct.pack(">hhi", key, 9, correlation) + b"the rest"
    return struct.pack(">i", len(head)) + head


def response(correlation: int) -> bytes:
    return struct.pack(">ii", 8, correlation) + b"done"


def test_the_answer_to_a_produce_request_is_a_confirmation() -> None:
    """Metadata (3) was asked for before, and is answered first."""
    kafka = KafkaConversation()
    kafka.asked(request(3, 7) + request(0, 8))

    assert [kafka.answered(response(7)), kafka.answered(response(8))] == [False, True]


def test_answers_are_found_in_any_pieces() -> None:
    kafka = KafkaConversation()
    for byte in request(3, 7) + request(0, 8):
        kafka.asked(bytes([byte]))

    found = [kafka.answered(bytes([byte])) for byte in response(7) + response(8)]

    assert found == [False] * 23 + [True]
