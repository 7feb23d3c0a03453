"""The server's answers, as pika would read them, and wherever the bytes are cut."""

from __future__ import annotations

import pytest
from pika import spec
from pika.frame import Method

from forebay.brokers.rabbitmq.answers import Answers

CHANNEL = 3


def ack(tag: int, *, multiple: bool = False, channel: int = CHANNEL) -> bytes:
    frame: bytes = Method(channel, spec.Basic.Ack(tag, multiple)).marshal()
    return frame


class Heard:
    def __init__(self) -> None:
        self.answers = Answers()
        self.heard: list[tuple[int, bool]] = []
        self.answers.add(CHANNEL, lambda tag, multiple: self.heard.append((tag, multiple)))


def test_whole_answers_are_heard_and_half_of_one_is_left() -> None:
    data = ack(1) + ack(2**40, multiple=True) + ack(7)
    for cut in range(len(data) + 1):
        it = Heard()
        end, unfinished = it.answers.read(data[:cut], 0)
        assert (end, unfinished) == (cut // len(ack(1)) * len(ack(1)), False)
        assert it.heard == [(1, False), (2**40, True), (7, False)][: end // len(ack(1))]


@pytest.mark.parametrize(
    "other",
    [
        Method(CHANNEL, spec.Basic.Nack(1, True, False)).marshal(),
        Method(CHANNEL, spec.Channel.Close(404, "NOT_FOUND", 60, 40)).marshal(),
        ack(1, channel=CHANNEL + 1),
        ack(1)[:-1] + b"\x00",
    ],
)
def test_anything_else_is_left_to_pika(other: bytes) -> None:
    it = Heard()
    assert it.answers.read(ack(5) + other + ack(6), 0) == (len(ack(5)), False)
    assert it.heard == [(5, False)]


def test_a_channel_that_is_gone_is_not_heard_any_more() -> None:
    it = Heard()
    it.answers.remove(CHANNEL)
    it.answers.remove(CHANNEL)
    assert not it.answers
    assert it.answers.read(ack(1), 0) == (0, False)
