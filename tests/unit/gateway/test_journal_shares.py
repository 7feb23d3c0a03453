"""One tenant cannot fill the journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.outlets.shares import JournalShares
from tests.unit.gateway.keys import Keys
from tests.unit.gateway.test_journaling import Away, bodies, journaling
from tests.waiting import until


@pytest.mark.parametrize("route", ["messages", "batch"])
async def test_a_tenant_at_its_share_of_the_journal_is_refused_and_another_goes_on(
    tmp_path: Path, route: str
) -> None:
    keys = Keys(tmp_path)
    greedy, modest = keys.add("greedy"), keys.add("modest")
    path = f"/v1/queues/orders/{route}"
    lines = {"Content-Type": "application/x-ndjson"}
    broker = Away()
    async with journaling(
        broker, tmp_path / "journal", journal_max_bytes=1000, keys_file=keys.path
    ) as gateway:
        broker.go()
        answers = [
            await gateway.client.post(path, content=b"x" * 200, headers=greedy | lines) for _ in range(4)
        ]
        other = await gateway.client.post(path, content=b"y" * 200, headers=modest | lines)

        assert [a.status_code for a in answers] == [202, 202, 202, 503]
        assert answers[3].json()["type"] == "/problems/journal-full"
        assert "retry-after" in answers[3].headers
        assert other.status_code == 202
        broker.come_back()
        parts = gateway.app.parts
        assert parts is not None
        ingest = parts.ingest
        await until(lambda: len(bodies(broker)) == 4 and ingest._held == 0)
        broker.go()
        again = await gateway.client.post(path, content=b"z" * 200, headers=greedy | lines)
        assert again.status_code == 202, "what was drained counts no more"


def test_what_was_drained_is_taken_off_whose_it_was() -> None:
    shares = JournalShares(1000)
    held = 0
    for tenant, size in [("a", 400), ("b", 100), ("a", 100)]:
        held += size
        shares.add(tenant, size, held)

    assert not shares.has_room("a", 0.5, held)
    assert shares.has_room("a", 0.5, held - 400)
    assert shares.has_room("b", 0.2, held - 400)
    assert not shares.has_room("b", 0.1, held - 400)
    assert shares.has_room("b", 0.1, 0)
    assert shares.total == 0


def test_what_another_process_left_is_nobodys() -> None:
    shares = JournalShares(1000)
    shares.add("a", 300, 900)

    assert shares.has_room("a", 0.4, 900)
    assert not shares.has_room("a", 0.3, 300)
