"""A cut of `make soak ONLY=slow-clients`: whoever sends a byte a second stops nobody else."""

from __future__ import annotations

import pytest

from tests.system import slow_run
from tests.system.harness import Site


@pytest.mark.parametrize("most", [10_000, 300])
def test_600_slow_clients_do_not_stop_good_ones(bare_site: Site, most: int) -> None:
    """Good requests are 202 at once, also where fewer connections may be open than there are slow ones."""
    bare_site.settings |= {"GATEWAY__MAX_CONNECTIONS": str(most), "GATEWAY__MAX_IN_FLIGHT": "100"}

    # Fewer good ones than may be in work, so that a disk that stands still refuses none of them; and
    # longer than the ten seconds that a head may take.
    outcome = slow_run.run(bare_site, count=600, rate=100, seconds=12, connections=80)

    assert outcome.not_at_once == 0, outcome.statuses
    assert outcome.good > 100
    assert sum(outcome.slow["ends"].values()) > 0, "no slow client was ever given up"
