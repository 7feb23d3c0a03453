"""A gateway that goes on without its broker, on real servers. Long runs: `make soak ONLY=journal-...`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.needs import missing_server
from tests.servers.kafka import KafkaNotInstalled
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQNode, RabbitMQNotInstalled
from tests.system import faults_run, journal_run
from tests.system.faults_run import Broker
from tests.system.harness import Site, http, until

RATE = 100.0


@pytest.fixture
def rabbit() -> Iterator[Broker]:
    """A RabbitMQ of our own: that of the others must not go away."""
    try:
        with faults_run.rabbitmq() as broker:
            yield broker
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))


@pytest.fixture
def kafka_alone() -> Iterator[Broker]:
    try:
        with faults_run.kafka() as broker:
            yield broker
    except KafkaNotInstalled as missing:
        missing_server(str(missing))


def test_rabbitmq_is_killed_under_load_and_nobody_is_refused(site: Site, rabbit: Broker) -> None:
    """The gateway is killed in the middle of it, too, and finds what it had journaled."""
    outcome = journal_run.run(site, rabbit, rate=RATE, gone=4, meanwhile=[journal_run.Run.kill_gateway])

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_kafka_is_killed_under_load_and_nobody_is_refused(site: Site, kafka_alone: Broker) -> None:
    site.settings |= {"BROKER__KAFKA__SESSION_TIMEOUT": "6s", "BROKER__KAFKA__PARTITIONS": "4"}
    outcome = journal_run.run(site, kafka_alone, rate=RATE, gone=4)

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_a_broker_that_stands_still_costs_no_request_more_than_the_budget(site: Site, rabbit: Broker) -> None:
    """SIGSTOP: its connections stay, and nothing is answered."""
    outcome = journal_run.run(
        site, rabbit, rate=RATE, gone=4, begin=journal_run.paused, end=journal_run.resumed
    )

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_a_rabbitmq_that_is_short_of_memory_counts_as_away(site: Site, rabbit: Broker) -> None:
    """In alarm it takes connections and delivers, and stores nothing."""

    def memory(limit: str) -> Callable[[journal_run.Run], None]:
        [node] = rabbit.nodes
        assert isinstance(node, RabbitMQNode)

        def set_to(run: journal_run.Run) -> None:
            node.ctl("set_vm_memory_high_watermark", "absolute", limit)

        return set_to

    outcome = journal_run.run(site, rabbit, rate=RATE, gone=4, begin=memory("1MB"), end=memory("600MB"))

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_with_a_fallback_rows_keep_arriving_while_the_broker_is_away(site: Site, rabbit: Broker) -> None:
    outcome = journal_run.run(
        site, rabbit, rate=RATE, gone=6, journal=False, fallback=f"sqlite:///{site.folder / 'fallback.db'}"
    )

    # Across two brokers there is no order.
    journal_run.check(outcome, ordered=False)
    assert set(outcome.promised) == {"synced"}
    assert outcome.stored_meanwhile > RATE


def nowhere() -> str:
    """A broker that is not there."""
    return f"amqp://guest:guest@127.0.0.1:{free_port()}/"


def journaling(site: Site, directory: Path | None = None) -> Path:
    directory = directory or site.folder / "journal"
    site.queues = "orders"
    site.settings |= {"GATEWAY__JOURNAL": str(directory), "GATEWAY__BROKER_BUDGET": "0.5"}
    return directory


def post(site: Site, count: int, *, port: int | None = None) -> list[str]:
    answers = [site.post("orders", b'{"n": %d}' % n, port=port) for n in range(count)]
    assert [a.status for a in answers] == [202] * count
    return [a.json["id"] for a in answers]


def waiting(site: Site, port: int | None = None) -> int:
    found: int = http("GET", f"http://127.0.0.1:{port or site.port}/v1/queues/orders").json["waiting"]
    return found


def test_it_starts_without_its_broker_and_a_stop_that_leaves_a_journal_alone_exits_9(bare_site: Site) -> None:
    site = bare_site
    journaling(site)
    gateway = site.gateway(FOREBAY_BROKER__URL=nowhere())
    post(site, 3)

    assert gateway.stop() == 9
    assert "3 messages" in gateway.output
    assert "forebay journal drain" in gateway.output


def test_a_stop_is_a_clean_one_while_another_gateway_can_adopt_the_journal(bare_site: Site) -> None:
    site = bare_site
    journaling(site)
    other = free_port()
    second = site.gateway(port=other)
    first = site.gateway(FOREBAY_BROKER__URL=nowhere())
    post(site, 3)

    assert first.stop() == 0
    second.until(lambda: waiting(site, other) == 3, what="the adopted messages")
    assert second.stop() == 0


def test_the_journal_of_a_killed_gateway_is_adopted_by_another(bare_site: Site) -> None:
    site = bare_site
    directory = journaling(site)
    other = free_port()
    second = site.gateway(port=other)
    first = site.gateway(FOREBAY_BROKER__URL=nowhere())
    post(site, 20)
    first.kill()

    second.until(lambda: waiting(site, other) == 20, what="the adopted messages")
    second.until(lambda: not (directory / "journal-2.db").exists(), what="the end of its journal")
    assert second.stop() == 0


def test_workers_have_a_journal_each_and_leave_none_behind(bare_site: Site) -> None:
    site = bare_site
    directory = journaling(site)
    gateway = site.gateway("--workers", "2", FOREBAY_BROKER__URL=nowhere())
    post(site, 10)
    until(lambda: (directory / "journal-2.db").exists(), what="the second journal")
    assert gateway.stop() == 9

    again = site.gateway()
    again.until(lambda: waiting(site) == 10, what="all of both journals")
    assert again.stop() == 0


def test_with_the_journals_disk_full_it_refuses_and_loses_nothing(bare_site: Site, small_disk: Path) -> None:
    site = bare_site
    journaling(site, small_disk / "journal")
    site.settings["BROKER__SQLITE__BALLAST_BYTES"] = "1MiB"
    gateway = site.gateway(FOREBAY_BROKER__URL=nowhere())
    accepted: list[str] = []
    while (answer := site.post("orders", b'{"x": "%s"}' % (b"x" * 200_000))).status == 202:
        accepted.append(answer.json["id"])
    assert answer.status == 503
    assert answer.json["type"] == "/problems/journal-full"
    assert int(answer.headers["retry-after"]) > 0
    assert len(accepted) > 5
    gateway.until(lambda: not site.ready(), what="that it is not ready")
    gateway.kill()

    again = site.gateway()
    again.until(lambda: waiting(site) == len(accepted), what="all that was accepted")
    assert again.stop() == 0


def test_a_journal_cut_off_in_the_middle_is_set_aside_and_the_gateway_serves(bare_site: Site) -> None:
    site = bare_site
    directory = journaling(site)
    gateway = site.gateway(FOREBAY_BROKER__URL=nowhere())
    for n in range(100):
        assert site.post("orders", b'{"n": "%s"}' % (b"%d " % n * 1_000)).status == 202
    assert gateway.stop() == 9
    file = directory / "journal-1.db"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2 + 1_000)

    again = site.gateway()
    post(site, 1)
    again.until(lambda: waiting(site) > 30, what="what could be read of it")
    assert list((directory / "damaged").glob("journal-1-*.db"))
    assert again.stop() == 0
