"""Mistakes that other gateways made, each by its name; the rest of them is in docs/guarantees.md."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pika

from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQCluster
from tests.system.harness import Answer, Site, until

COUNT = 200


def test_a_crash_between_store_and_answer_leaves_no_key_that_is_refused_for_good(site: Site) -> None:
    """The gateway is killed with keyed requests in its hands; each retry is 202, and each has one effect."""
    site.queues = "orders"
    gateway = site.gateway()
    first = threading.Event()

    def send(number: int) -> Answer | None:
        try:
            answer = site.post("orders", b"%d" % number, Idempotency_Key=f"order-{number}")
        except OSError:
            return None
        first.set()
        return answer

    with ThreadPoolExecutor(20) as pool:
        sending = [pool.submit(send, number) for number in range(COUNT)]
        assert first.wait(30)
        gateway.kill()
        before = [one.result() for one in sending]
        assert None in before, "everything was answered before the kill"
        site.gateway()
        after = [one.result() for one in [pool.submit(send, number) for number in range(COUNT)]]

    assert {answer.status for answer in after if answer is not None} == {202}
    assert len([answer for answer in after if answer is not None]) == COUNT
    for then, now in zip(before, after, strict=True):
        if then is not None and now is not None:
            assert then.status == 202
            assert then.json["id"] == now.json["id"]
    consumer = site.consumer("orders")
    consumer.until(lambda: site.queue("orders")["waiting"] == 0 and site.stored() >= COUNT, what="all rows")
    assert consumer.stop() == 0
    assert site.stored() == COUNT
    assert site.sql("select count(*) from dead_letters") == [(0,)]


def test_many_identical_requests_at_once_through_two_gateways_have_one_effect(site: Site) -> None:
    site.queues = "orders"
    other = free_port()
    site.gateway()
    site.gateway(port=other)
    together = threading.Barrier(20)

    def send(number: int) -> Answer:
        together.wait(30)
        return site.post("orders", b"once", port=(site.port, other)[number % 2], Idempotency_Key="once")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert site.post("orders", b"last").status == 202
    consumer = site.consumer("orders")
    consumer.until(lambda: site.sql("select 1 from messages where body = 'last'"), what="the last message")
    assert consumer.stop() == 0
    assert site.sql("select count(*) from messages where body = 'once'") == [(1,)]
    assert site.sql("select count(*) from dead_letters") == [(0,)]


def test_a_message_for_a_queue_that_is_gone_from_rabbitmq_is_not_answered_2xx(
    site: Site, rabbitmq: RabbitMQCluster
) -> None:
    """RabbitMQ confirms what it can route nowhere, and drops it; only `mandatory` tells."""
    queue = site.queues = f"gone-{free_port()}"
    site.settings |= {"BROKER__URL": rabbitmq.url, "BROKER__RABBITMQ__PREFIX": f"{queue}."}
    site.gateway()
    assert site.post(queue, b"there").status == 202

    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        connection.channel().queue_delete(f"{queue}.{queue}")
    answers = [site.post(queue, b"gone") for _ in range(5)]

    assert all(answer.status in (404, 503) for answer in answers), answers
    site.processes[0].stop()
    site.gateway()  # declares it again
    until(lambda: site.post(queue, b"back").status == 202, what="a queue that is there again")
