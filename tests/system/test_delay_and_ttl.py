"""A delay and a time to live mean the same on every broker, from the HTTP request to the database."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tests.system.harness import Site, http, until

WORTHLESS = 400
DELAY = 2.0


def test_what_is_late_is_dead_what_is_early_waits_and_the_queue_goes_on(site: Site, broker: str) -> None:
    """
    400 expired messages among 21 good ones: all are dead letters with that reason, and the budget that
    a bad release would have used up long before is untouched.
    """
    queue = site.queues
    site.settings["QUEUE_DEFAULTS__DEAD_LETTER_BUDGET__MAX_RUN"] = "20"
    site.gateway()
    lines: list[dict[str, object]] = [{"body": {"n": n}, "ttl": "500ms"} for n in range(WORTHLESS)]
    lines += [{"body": {"n": n}} for n in range(WORTHLESS, WORTHLESS + 20)]
    lines.append({"body": {"n": "delayed"}, "delay": DELAY, "ttl": "1h"})
    sent = http(
        "POST",
        f"{site.url}/v1/queues/{queue}/batch",
        "\n".join(map(json.dumps, lines)).encode(),
        {"Content-Type": "application/vnd.forebay.batch+ndjson"},
    )
    assert (sent.status, sent.json["counts"]["ok"]) == (202, WORTHLESS + 21)
    accepted = datetime.now(UTC)
    until(lambda: (datetime.now(UTC) - accepted).total_seconds() > 0.5, what="the end of their time")

    consumer = site.consumer(queue)

    consumer.until(
        lambda: site.sql("select count(*) from dead_letters")[0][0] == WORTHLESS and site.stored() == 21,
        what="400 dead letters and 21 rows",
        within=60,
    )
    dead = site.sql("select distinct error_class, attempts from dead_letters")
    assert [row[0] for row in dead] == ["expired"]
    ((waited,),) = site.sql(
        "select extract(epoch from stored_at - accepted_at) from messages where payload->>'n' = 'delayed'"
    )
    assert float(waited) >= DELAY
    status = site.run("status", "--json")
    assert "suspicious" not in status.stdout
    assert consumer.stop() == 0
