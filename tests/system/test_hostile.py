"""A cut of `make soak ONLY=hostile`: broken requests of every kind, with good ones in between."""

from __future__ import annotations

from pathlib import Path

from tests.system import hostile
from tests.system.harness import Site


def test_3000_malformed_requests_leave_the_gateway_serving_and_its_memory_flat(bare_site: Site) -> None:
    """
    Every answer is a 4xx problem or the end of the connection, good ones in between are 202, and
    nothing but good ones is stored.
    """
    result = hostile.run(bare_site, count=3_000, seed=1, slow_ones=4)

    outcome = result.outcome
    assert outcome.sent == 3_004
    assert not outcome.wrong, "\n".join(outcome.wrong[:10])
    assert len(outcome.statuses) > 30, "not every kind of request was sent"
    assert outcome.controls > 50
    assert result.stored == outcome.accepted
    assert result.grown < hostile.FLAT


def test_the_judge_finds_a_gateway_that_takes_anything(tmp_path: Path) -> None:
    """A server that answers 202 to all it reads is found out by each kind of case."""
    outcome = hostile.attack_a_server_that_accepts_everything(count=200, seed=1)

    assert len(outcome.wrong) > 150
