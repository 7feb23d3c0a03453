"""`forebay load` against a real gateway."""

from __future__ import annotations

import json

from tests.system.harness import Site


def test_what_a_load_was_answered_is_counted_and_can_be_verified(site: Site) -> None:
    site.queues = "orders"
    site.gateway()
    site.consumer()

    loaded = site.run(
        "load", "orders", "--url", site.url, "--rate", "100", "--for", "1s", "--record", "sent.txt", "--json"
    )

    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    assert (found["sent"], found["accepted"], found["timed_out"]) == (100, 100, 0)
    verified = json.loads(site.run("verify", "sent.txt", "--wait", "30s", "--json").stdout)
    assert (verified["recorded"], verified["stored"], verified["lost"]) == (100, 100, 0)


def test_a_gateway_that_is_not_there_is_told_with_a_code_of_its_own(site: Site) -> None:
    loaded = site.run("load", "orders", "--url", site.url, "--rate", "10", "--for", "500ms")

    assert loaded.returncode == 6
    assert "5 were not accepted" in loaded.stderr
