"""A batch is sent until every message has its result, and each stays one message."""

from __future__ import annotations

import pytest

from forebay.brokers.api import PublishResult
from forebay.client import Client, Item, PartlyFailed, QueueUnknown, Refused, SyncClient
from forebay.errors import BrokerUnavailable, PublishUnconfirmed, QueueFull
from forebay.ids import id_from_key
from forebay.message import Message
from tests.unit.gateway.support import Running, ScriptedBroker, running


def client_of(gateway: Running, *, retry_for: float = 60.0) -> Client:
    return Client(f"http://127.0.0.1:{gateway.port}", retry_for=retry_for)


async def test_messages_arrive_in_order_with_their_bytes_and_what_is_said_of_them() -> None:
    bodies = [b'{"n": 1.0}', b' {"spaces": 1} ', b"{broken", b'{"two":\n"lines"}', b"", b"\x00\xff"]
    async with running() as gateway, client_of(gateway) as client:
        accepted = await client.send_batch(
            "orders",
            [
                *bodies,
                Item(body=b"x", content_type="text/plain", ordering_key="o", headers={"source": "s"}, ttl=60),
            ],
            content_type="application/json",
            idempotency_key="b",
        )

        messages = gateway.broker.messages
        assert [m.body for m in messages] == [*bodies, b"x"]
        assert [m.id for m in messages] == [id_from_key("", "orders", f"b/{n}") for n in range(7)]
        assert [a.id for a in accepted] == [m.id for m in messages]
        assert {m.content_type for m in messages[:-1]} == {"application/json"}
        last = messages[-1]
        assert (last.content_type, last.key, last.headers) == ("text/plain", "o", {"source": "s"})
        assert last.expires_at is not None


async def test_thousands_go_in_several_requests() -> None:
    async with running() as gateway, client_of(gateway) as client:
        accepted = await client.send_batch("orders", [b"%d" % n for n in range(2_500)])

        assert len(accepted) == 2_500
        assert [m.body for m in gateway.broker.messages] == [b"%d" % n for n in range(2_500)]


async def test_only_what_failed_is_sent_again_and_under_the_same_key() -> None:
    def half(message: Message) -> PublishResult:
        if message.body in (b"1", b"3"):
            return PublishResult(message_id=message.id, error=QueueFull("full"))
        return PublishResult(message_id=message.id, durability="synced")

    broker = ScriptedBroker()
    broker.failures = [half, BrokerUnavailable("away"), PublishUnconfirmed("late")]
    async with running(broker) as gateway, client_of(gateway) as client:
        accepted = await client.send_batch("orders", [b"0", b"1", b"2", b"3"], idempotency_key="b")

        sent = [[m.body for m in messages] for _, messages in broker.publishes]
        assert sent == [[b"0", b"1", b"2", b"3"]] + [[b"1", b"3"]] * 3
        assert [a.id for a in accepted] == [id_from_key("", "orders", f"b/{n}") for n in range(4)]
        assert client.retries == 3


async def test_what_is_refused_is_told_and_the_rest_is_stored() -> None:
    async with running(max_body_bytes=100) as gateway, client_of(gateway) as client:
        with pytest.raises(PartlyFailed, match="1 of 3 messages were not accepted") as failed:
            await client.send_batch("orders", [b"a", b"x" * 101, b"c"], idempotency_key="b")

        first, second, third = failed.value.results
        assert isinstance(second, Refused)
        assert (second.type, second.idempotency_key) == ("/problems/body-too-large", "b/1")
        assert [m.body for m in gateway.broker.messages] == [b"a", b"c"]
        assert not isinstance(first, Exception)
        assert not isinstance(third, Exception)


async def test_a_gateway_that_takes_fewer_at_once_gets_the_rest_in_further_requests() -> None:
    async with running(max_batch_items=10) as gateway, client_of(gateway) as client:
        await client.send_batch("orders", [b"%d" % n for n in range(25)])

        assert [m.body for m in gateway.broker.messages] == [b"%d" % n for n in range(25)]


async def test_a_queue_that_is_not_there_is_told_for_every_message() -> None:
    async with running() as gateway, client_of(gateway) as client:
        with pytest.raises(PartlyFailed) as failed:
            await client.send_batch("nowhere", [b"a", b"b"])

        assert [type(r) for r in failed.value.results] == [QueueUnknown] * 2


async def test_a_batch_is_given_up_after_its_time_with_what_may_be_stored() -> None:
    broker = ScriptedBroker()
    broker.failures = [PublishUnconfirmed("late")] * 100
    async with running(broker) as gateway, client_of(gateway, retry_for=0.0) as client:
        with pytest.raises(PartlyFailed) as failed:
            await client.send_batch("orders", [b"a"])

        assert failed.value.maybe_stored


def test_code_without_an_event_loop_can_use_it_as_well() -> None:
    with SyncClient("http://127.0.0.1:1", retry_for=0.0) as client:
        with pytest.raises(PartlyFailed, match="no connection"):
            client.send_batch("orders", [b"a"])
        assert client.send_batch("orders", []) == []
