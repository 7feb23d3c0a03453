"""What consumers tell of their queues: added up while all of them report, and remembered per broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from forebay.brokers.api import Depth, Share
from forebay.figures import Figures, Reported, complete
from forebay.storage.database import Database
from forebay.storage.reports import (
    QueueReport,
    exchange,
    left_behind,
    read_reports,
    withdraw,
)
from forebay.storage.tables import metadata

SILENT = Depth(
    waiting=None, scheduled=None, in_hand=None, bytes=None, oldest_age=None, unknown="it does not say"
)
RABBIT = Depth(waiting=7, scheduled=0, in_hand=None, bytes=None, oldest_age=None, unknown="AMQP is silent")
EMPTY = Depth(waiting=0, scheduled=0, in_hand=0, bytes=0, oldest_age=None)


def report(
    share: Share | None = None, depth: Depth | None = RABBIT, *, broker: str = "rabbit", queue: str = "orders"
) -> QueueReport:
    return QueueReport(
        broker=broker, url=f"amqp://{broker}", queue=queue, share=share or Share(in_hand=0), depth=depth
    )


def grow_old(database: Database, table: str, seconds: float, **where: str) -> None:
    """Let rows be this much older."""
    t = metadata.tables[table]
    column = t.c.reported_at if table == "consumer_reports" else t.c.seen_at
    with database.begin() as connection:
        connection.execute(
            sa.update(t)
            .where(*[t.c[name] == value for name, value in where.items()])
            .values({column.name: datetime.now(UTC) - timedelta(seconds=seconds)})
        )


def test_what_the_broker_does_not_tell_is_the_sum_of_its_consumers(database: Database) -> None:
    exchange(database, "a", [report(Share(in_hand=3, oldest_age=1.0))], tidy=True)

    figures = exchange(database, "b", [report(Share(in_hand=4, oldest_age=9.0))], tidy=True)

    found = figures["rabbit", "orders"]
    assert (found.depth.waiting, found.depth.in_hand, found.depth.oldest_age) == (7, 7, 9.0)
    assert found.reported == ("in_hand", "oldest_age")
    assert found.reported_age is not None
    assert found.reported_age < 5


def test_a_process_has_one_row_per_queue_of_a_broker(database: Database) -> None:
    for in_hand in (3, 5):
        exchange(database, "a", [report(Share(in_hand=in_hand))], tidy=True)

    assert read_reports(database, ["rabbit"])["rabbit", "orders"].share.in_hand == 5


def test_a_consumer_that_stopped_in_order_does_not_count(database: Database) -> None:
    exchange(database, "a", [report(Share(in_hand=3))], tidy=True)
    exchange(database, "b", [report(Share(in_hand=4))], tidy=True)

    withdraw(database, "a")

    assert read_reports(database, ["rabbit"])["rabbit", "orders"].share.in_hand == 4


def test_a_sum_without_one_of_the_consumers_is_no_figure(database: Database) -> None:
    """It may have been killed, or be cut off from the database with messages in hand."""
    exchange(database, "host:1", [report(Share(in_hand=3))], tidy=True)
    grow_old(database, "consumer_reports", 30)

    found = exchange(database, "host:2", [report(Share(in_hand=4))], tidy=True)["rabbit", "orders"]

    assert found.depth.in_hand is None
    assert "the consumer host:1 has not reported for 30 s" in found.depth.unknown


def test_a_consumer_that_is_gone_is_forgotten(database: Database) -> None:
    exchange(database, "a", [report(Share(in_hand=3))], tidy=True)
    grow_old(database, "consumer_reports", 70)

    found = exchange(database, "b", [report(Share(in_hand=4))], tidy=True)["rabbit", "orders"]

    assert found.depth.in_hand == 4


def test_after_an_outage_of_the_database_nobody_is_taken_for_gone(database: Database) -> None:
    exchange(database, "a", [report(Share(in_hand=3))], tidy=True)
    grow_old(database, "consumer_reports", 70)

    found = exchange(database, "b", [report(Share(in_hand=4))], tidy=False)["rabbit", "orders"]

    assert found.depth.in_hand is None


def test_what_one_consumer_cannot_tell_the_sum_cannot(database: Database) -> None:
    """On Kafka each knows its own partitions only."""
    exchange(database, "a", [report(Share(in_hand=1, waiting=5, scheduled=0), SILENT)], tidy=True)
    whole = exchange(database, "b", [report(Share(in_hand=1, waiting=2, scheduled=1), SILENT)], tidy=True)
    assert whole["rabbit", "orders"].depth.waiting == 7

    part = exchange(database, "b", [report(Share(in_hand=1), SILENT)], tidy=True)

    assert (part["rabbit", "orders"].depth.waiting, part["rabbit", "orders"].depth.in_hand) == (None, 2)


def test_what_the_broker_tells_is_never_replaced() -> None:
    reported = Reported(share=Share(in_hand=9, waiting=9, scheduled=9), age=1.0)
    assert complete(EMPTY, reported) == Figures(depth=EMPTY)


def test_without_a_report_the_reason_says_so() -> None:
    assert complete(RABBIT, None).depth.unknown == "AMQP is silent; no consumer has reported"


def left(database: Database, *known: str, urls: tuple[str, ...] = ()) -> list[tuple[str, int, bool]]:
    return [(one.broker, one.held, one.exact) for one in left_behind(database, known=known, urls=urls)]


def test_a_broker_that_held_messages_is_remembered_after_its_consumers(database: Database) -> None:
    exchange(database, "a", [report(Share(in_hand=3)), report(depth=EMPTY, queue="orders.dead")], tidy=True)
    assert left(database, "kafka") == []  # It is looked after.

    withdraw(database, "a")

    assert left(database, "kafka") == [("rabbit", 10, True)]
    assert left(database, "rabbit") == []
    assert left(database, "kafka", urls=("amqp://rabbit",)) == []


def test_a_broker_that_was_seen_empty_is_nobodys_worry(database: Database) -> None:
    exchange(database, "a", [report()], tidy=True)
    exchange(database, "a", [report(depth=EMPTY)], tidy=True)
    withdraw(database, "a")

    assert left(database, "kafka") == []


def test_what_could_only_be_counted_in_part_is_a_lower_bound(database: Database) -> None:
    partly = Depth(waiting=7, scheduled=None, in_hand=None, bytes=None, oldest_age=None, unknown="why not")
    exchange(database, "a", [report(Share(in_hand=3), partly)], tidy=True)
    withdraw(database, "a")

    assert left(database, "kafka") == [("rabbit", 10, False)]


@pytest.mark.parametrize("depth", [SILENT, None])
def test_a_look_that_told_nothing_does_not_undo_the_one_before(
    database: Database, depth: Depth | None
) -> None:
    exchange(database, "a", [report(Share(in_hand=3))], tidy=True)
    # Another process has not reported for a while: so the shares do not tell either.
    grow_old(database, "consumer_reports", 30, process="a")
    exchange(database, "b", [report(depth=depth)], tidy=True)
    for process in ("a", "b"):
        withdraw(database, process)

    assert left(database, "kafka") == [("rabbit", 10, True)]


def test_a_broker_is_not_remembered_for_ever(database: Database) -> None:
    exchange(database, "a", [report()], tidy=True)
    withdraw(database, "a")
    grow_old(database, "broker_depths", 31 * 86_400)

    exchange(database, "b", [report(broker="kafka")], tidy=True)

    assert left(database, "kafka") == []
