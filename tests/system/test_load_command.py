"""`forebay load` against a real gateway."""

from __future__ import annotations

import json

from forebay.ledger import read_record
from tests.system.harness import Site


def test_what_a_load_was_answered_is_counted_and_recorded(bare_site: Site) -> None:
    site = bare_site
    site.queues = "orders"
    site.gateway()

    loaded = site.run(
        "load", "orders", "--url", site.url, "--rate", "100", "--for", "1s", "--record", "sent.txt", "--json"
    )

    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    assert (found["sent"], found["accepted"], found["failed"]) == (100, 100, 0)
    with (site.folder / "sent.txt").open("rb") as lines:
        assert len(read_record(lines).sent) == 100
    assert site.queue("orders")["waiting"] == 100


def test_a_gateway_that_is_not_there_is_told_with_a_code_of_its_own(bare_site: Site) -> None:
    loaded = bare_site.run("load", "orders", "--url", bare_site.url, "--rate", "10", "--for", "500ms")

    assert loaded.returncode == 6
    assert "5 were not accepted" in loaded.stderr
