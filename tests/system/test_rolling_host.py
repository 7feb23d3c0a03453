"""
What the deployer does on a host, with stand-ins for Forebay that start at once.

With Forebay itself, under load: test_rolling.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing_server
from tests.servers.nginx import NginxNotInstalled
from tests.system.harness import Site, http, until
from tests.system.rolling_run import ROLL, Rolled


@pytest.fixture
def rolled(bare_site: Site) -> Iterator[Rolled]:
    """One gateway and one consumer of version 1; there is a version 2."""
    try:
        this = Rolled(bare_site, gateways=1, consumers=1, settle=0.1, closing=0.1, start_timeout=20.0)
    except NginxNotInstalled as missing:
        missing_server(str(missing))
    for version in ("1", "2"):
        this.releases.add_stand_in(version)
    this.must("to", "1")
    yield this
    this.close()


def running(this: Rolled) -> dict[str, dict[str, int]]:
    """By the name of an instance: what its keeper says."""
    folder = this.site.folder / "rolling/instances"
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/running.json")}


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("fails-at-start", "ended with exit code 3"),
        ("exits-after-2s", "was ready, and then"),
        ("answers-500", "is ready, but the canary was answered 500"),
    ],
)
def test_a_broken_version_never_enters_rotation(rolled: Rolled, how: str, complaint: str) -> None:
    rolled.releases.add_broken(how, good="1")
    before = rolled.rotation
    if how == "exits-after-2s":
        rolled.change("settle", "0.1", "4.0")

    done = rolled.roll("to", how)

    assert done.returncode == 1
    assert complaint in done.stderr
    assert "all instances run 1 again" in done.stderr
    assert rolled.rotation == before
    assert http("GET", f"{rolled.nginx.url}/readyz").status == 200
    assert how not in rolled.roll("status").stdout


def test_a_deployer_that_is_killed_is_gone_on_with(rolled: Rolled) -> None:
    rolled.change("settle", "0.1", "600.0")
    deployer = rolled.start("to", "2")
    until(lambda: len(running(rolled)) == 3, what="a third instance, being proven")
    busy = rolled.roll("to", "2")
    deployer.kill()
    deployer.wait(10)
    rolled.change("settle", "600.0", "0.1")

    done = rolled.roll("to", "2")

    assert busy.returncode == 4, busy.stderr
    assert done.returncode == 0, done.stderr
    assert "was never proven: stopping it" in done.stderr
    status = rolled.roll("status").stdout
    assert "current 2; previous 1" in status
    assert status.count(" 2  127.0.0.1:") == 2


def test_a_journal_that_nobody_has_is_waited_for(rolled: Rolled) -> None:
    """Until a gateway has adopted it, nothing more is replaced."""
    rolled.change("journal", "false", "true")
    folder = rolled.site.folder / "rolling"
    left = {"file": "journal-1.db", "owned": False, "messages": 3}
    (folder / "journal.json").write_text(json.dumps([left]))
    deployer = rolled.start("to", "2")
    try:
        until(lambda: (folder / "asked").exists(), within=60, what="a look at the journals")
        size = (folder / "asked").stat().st_size
        until(lambda: (folder / "asked").stat().st_size > size, what="another look")
        waited = deployer.poll() is None
        (folder / "journal.json").write_text(json.dumps([left | {"owned": True}]))

        assert deployer.wait(60) == 0
        assert waited
    finally:
        deployer.kill()
        deployer.wait(10)


def test_an_instance_that_dies_is_started_again(rolled: Rolled) -> None:
    (name,) = (name for name in running(rolled) if name.startswith("gateway"))
    first = running(rolled)[name]

    os.kill(first["pid"], signal.SIGKILL)

    until(lambda: running(rolled)[name]["pid"] not in (None, first["pid"]), what="another process")
    until(lambda: http("GET", f"{rolled.nginx.url}/readyz").status == 200, what="its readiness")
    assert running(rolled)[name]["starts"] == 2


def test_after_the_host_was_started_again_all_of_it_is(rolled: Rolled) -> None:
    for one in running(rolled).values():
        for pid in (one["keeper"], one["pid"]):
            os.kill(pid, signal.SIGKILL)
    # Nobody waits for them here but whoever adopts orphans.
    until(lambda: "ready" not in rolled.roll("status").stdout, what="nothing running")

    rolled.must("start")

    assert http("GET", f"{rolled.nginx.url}/readyz").status == 200
    rolled.must("smoke")


def test_a_version_that_is_not_there_touches_nothing(rolled: Rolled) -> None:
    done = rolled.roll("to", "3")

    assert done.returncode == 2
    assert "there is no version 3 on this host" in done.stderr


def test_without_a_canary_queue_it_is_said_what_is_missing(rolled: Rolled) -> None:
    script = rolled.releases.root / "2/bin/forebay"
    script.write_text(script.read_text().replace("self.answer(202", "self.answer(404"))

    done = rolled.roll("to", "2")

    assert done.returncode == 1
    assert "name the queue forebay-canary in the settings" in done.stderr


def test_the_configuration_of_the_installation_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(ROLL), "--config", str(tmp_path / "none.toml"), "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "name the file with --config" in done.stderr
