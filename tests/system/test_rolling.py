"""A roll forward and back under load, and a broken version. Ten of each: `make soak ONLY=rolling`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.needs import missing_server
from tests.servers.nginx import NginxNotInstalled
from tests.system import rolling_run
from tests.system.harness import Site
from tests.system.rolling_run import Rolled


@pytest.fixture
def rolled(site: Site) -> Iterator[Rolled]:
    try:
        this = Rolled(site, consumers=1, settle=0.3)
    except NginxNotInstalled as missing:
        missing_server(str(missing))
    yield this
    this.close()


def test_a_roll_forward_and_back_drops_nothing_and_a_broken_version_is_stopped(rolled: Rolled) -> None:
    rolled.releases.add_previous("old")
    rolled.releases.add("new")
    rolled.releases.add_broken("fails-at-start", good="old", verb="consume")
    rolled.migrate_no_more()  # the site has its tables, and a start of `forebay migrate` takes its time

    outcome = rolling_run.run(rolled, ["old", "new", "old"], broken=["fails-at-start"], rate=200)

    outcome.check()
    assert "ended with exit code 3" in outcome.stopped[0]
