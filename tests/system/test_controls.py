"""What an operator says is obeyed by every replica within 2 s, and kept while the database is away."""

from __future__ import annotations

import time

from tests.servers.postgres import Postgres, free_port
from tests.system.harness import Site, http, until


def test_a_queue_is_paused_everywhere_and_resumed(site: Site, broker: str) -> None:
    gateway = site.gateway()
    consumers = [site.start("consume", log=f"consume-{n}") for n in range(2)]
    queue = site.queues
    for n in range(20):
        assert site.post(queue, b"%d" % n).status == 202
    consumers[0].until(lambda: site.stored() == 20, what="20 rows")

    paused = site.run("pause", queue, "--reason", "the warehouse moves")
    assert paused.returncode == 0, paused.stderr
    time.sleep(2.0)  # what is promised
    for n in range(20, 40):
        assert site.post(queue, b"%d" % n).status == 202
    time.sleep(1.0)  # time in which a consumer that does not obey would store them
    assert site.stored() == 20
    until(
        lambda: "the warehouse moves" in site.run("status").stdout, within=15.0, what="the reason in status"
    )

    # One that starts later obeys as well.
    late = site.start("consume", log="late")
    late.until(lambda: "queue is held back" in late.output, what="its word")
    assert site.stored() == 20

    assert site.run("resume", queue).returncode == 0
    gateway.until(lambda: site.stored() == 40, within=15.0, what="the rest")
    ((attempts,),) = site.sql("select max(attempts) from messages")
    assert attempts == 1


def test_a_pause_outlives_the_database_and_is_seen_at_the_health_page(site: Site, postgres: Postgres) -> None:
    site.queues = "orders"
    site.gateway()
    port = free_port()
    consumer = site.start("consume", "--port", str(port), log="consume")
    assert site.post("orders", b"1").status == 202
    consumer.until(lambda: site.stored() == 1, what="a row")
    assert site.run("throttle", "orders", "5").returncode == 0
    assert site.run("pause", "orders").returncode == 0

    def state() -> dict[str, object]:
        answer = http("GET", f"http://127.0.0.1:{port}/readyz?verbose")
        assert answer.status == 200, "a paused consumer is ready"
        found: dict[str, object] = answer.json["queues"][0]
        return found

    until(lambda: state()["paused_by"] == "operator", within=3.0, what="the pause")
    assert state()["rate"] == 5.0
    metrics = http("GET", f"http://127.0.0.1:{port}/metrics").body.decode()
    assert 'forebay_consumer_queue_paused{queue="orders",reason="operator"} 1.0' in metrics

    postgres.stop("immediate")
    try:
        assert site.post("orders", b"2").status == 202
        consumer.until(lambda: "all stays as it is" in consumer.output, what="the outage")
        assert state()["paused_by"] == "operator"
    finally:
        postgres.start()
    assert site.run("resume", "orders").returncode == 0
    consumer.until(lambda: site.stored() == 2, within=15.0, what="the second row")


def test_a_mistyped_queue_is_not_paused(site: Site) -> None:
    site.queues = "orders,clicks"
    done = site.run("pause", "ordres")
    assert done.returncode == 4
    assert "did you mean 'orders'?" in done.stderr
    assert site.run("throttle", "orders", "fast").returncode == 2
