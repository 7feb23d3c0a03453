"""An idle consumer in another process wakes up for a message, and uses no time while there is none."""

from __future__ import annotations

import statistics
import time
from functools import partial

from tests.system.harness import Site, cpu_seconds

IDLE = 2.0


def has_row(site: Site, number: int) -> bool:
    return bool(site.sql(f"select 1 from messages where body = '{number}'"))


def test_a_message_wakes_an_idle_consumer_in_another_process(site: Site) -> None:
    """
    From the 202 to the row: 50 ms to wake up, 20 ms to fill a batch, and the write itself.

    The median of several, because the machine has other work.
    """
    site.gateway()
    consumer = site.consumer("flights")
    assert site.post("flights", b"first").status == 202
    consumer.until(lambda: site.stored() == 1, what="the first row")
    for number in range(10):
        assert site.post("flights", b"%d" % number).status == 202
        consumer.until(partial(has_row, site, number), what="its row")

    ages = site.sql("select extract(epoch from stored_at - accepted_at) from messages order by stored_at")
    assert statistics.median(float(age) for (age,) in ages[1:]) < 0.2, ages


def test_an_idle_consumer_sleeps(site: Site) -> None:
    site.gateway()
    consumer = site.consumer("flights")
    assert site.post("flights", b"first").status == 202
    consumer.until(lambda: site.stored() == 1, what="the first row")

    before = cpu_seconds(consumer.pid)
    time.sleep(IDLE)  # what is measured is the passing of time

    assert consumer.running
    assert cpu_seconds(consumer.pid) - before < 0.1 * IDLE
