"""A message that kills its consumer is found, and the messages beside it are none the worse."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.system.harness import Process, Site, until

HANDLER = """
import ctypes

from sqlalchemy import text


def handle(message, db):
    db.execute(text("insert into effects (number) values (:n)"), {"n": int(message.body)})
    if message.body == b"60":
        ctypes.string_at(0)  # a bug in native code: the process is gone
"""
COUNT = 120


class Restarted:
    """Consumers that a supervisor starts again when they die."""

    def __init__(self, site: Site, replicas: int) -> None:
        self._site = site
        self._consumers = [self._start() for _ in range(replicas)]
        self.deaths: list[int] = []

    def _start(self) -> Process:
        return self._site.start("consume", log=f"consume-{len(self._site.processes)}")

    def look(self) -> None:
        for n, consumer in enumerate(self._consumers):
            if not consumer.running:
                self.deaths.append(consumer.wait())
                self._consumers[n] = self._start()

    def stop(self) -> None:
        for consumer in self._consumers:
            assert consumer.stop() == 0, consumer.tail()


def test_a_message_that_kills_its_consumer_is_dead_lettered_and_harms_no_other(
    site: Site, broker: str, tmp_path: Path
) -> None:
    (site.folder / "handling.py").write_text(HANDLER)
    site.sql("create table effects (number integer not null)")
    site.settings |= {
        "QUEUE_DEFAULTS__HANDLER": "handling:handle",
        "CONSUMER__STATE_DIR": str(tmp_path / "state"),
        # Less than all at once: so there are some that were only prefetched.
        "QUEUE_DEFAULTS__BATCH_SIZE": "25",
    }
    gateway = site.gateway()
    for number in range(COUNT):
        assert site.post(site.queues, b"%d" % number).status == 202

    consumers = Restarted(site, 1 if broker == "kafka" else 2)

    def over() -> bool:
        consumers.look()
        ((effects,),) = site.sql("select count(*) from effects")
        ((dead,),) = site.sql("select count(*) from dead_letters")
        return bool(effects == COUNT - 1 and dead == 1)

    until(over, within=120.0, every=0.1, what="all but one handled, and one dead")
    consumers.stop()
    gateway.stop()

    assert site.sql("select count(distinct number), min(number), max(number) from effects") == [
        (COUNT - 1, 0, COUNT - 1)
    ]
    ((error_class, attempts, body),) = site.sql("select error_class, attempts, body from dead_letters")
    assert (error_class, attempts, bytes(body)) == ("crashed", 1, b"60")
    # Once in a batch, by each of the consumers at most, and twice alone; or once more, by one who did not
    # know yet.
    assert 3 <= len(consumers.deaths) <= 5, consumers.deaths
    # One that another consumer took before anybody suspected it stays on the list, and leaves it by age.
    assert site.sql("select max(alone) from crash_suspects") in ([(None,)], [(0,)])
    shown = site.run("dead-letters", "list", "--json")
    assert re.match(r"killed [23] consumers that handled nothing", json.loads(shown.stdout)[0]["reason"])
