"""When the next host is tried."""

from __future__ import annotations

from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorSocketConnectError,
)
from pika.exceptions import AMQPConnectionError

from forebay.brokers.rabbitmq.link import AT_ONCE, BACKOFF, pause, reason_text


def test_every_host_is_tried_before_there_is_a_pause() -> None:
    for failures in (0, 1, 2, 4, 5, 7, 8):
        assert pause(failures, hosts=3) <= AT_ONCE


def test_pauses_grow_with_each_round_and_end_growing() -> None:
    for rounds, ceiling in ((1, 0.1), (2, 0.2), (3, 0.4), (2000, BACKOFF[1])):
        assert ceiling / 2 <= pause(3 * rounds, hosts=3) <= ceiling
        assert ceiling / 2 <= pause(rounds, hosts=1) <= ceiling


def test_the_reason_is_the_innermost_one_in_plain_words() -> None:
    refused = AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "Connection refused"))
    wrapped = AMQPConnectionError(AMQPConnectionWorkflowFailed([refused]))
    assert reason_text(wrapped) == "Connection refused"
