"""`forebay demo` on the parts that every machine has. On servers of its own: `make soak ONLY=demo`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.system.harness import FOREBAY, until


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The demo, whose own folder is made in `folder`."""
    return subprocess.Popen(
        [FOREBAY, "demo", "--embedded", *options],
        cwd=folder, env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_database_and_broker_die_and_the_ledger_adds_up(tmp_path: Path) -> None:
    demo = start(tmp_path, "--seconds", "5", "--rate", "40", "--json")
    said, told = demo.communicate(timeout=180)

    assert demo.returncode == 0, told
    found = json.loads(said)
    assert found["good"]
    assert found["ledger"] == {
        "accepted": 201, "stored": 200, "waiting": 0, "dead": 1, "lost": 0, "duplicated": 0, "altered": 0,
    }  # fmt: skip
    assert found["forebay"]["accepted"] == found["forebay"]["sent"] == 200
    assert found["forebay"]["failed"] == 0
    assert found["database"] == {"what": "SQLite", "fate": "locked"}
    assert "SQLite locked" in told
    assert "the embedded queue locked" in told
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == ["forebay-demo.csv"]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start(tmp_path)
    said = demo.stderr
    assert said is not None
    until(lambda: "a second to each side" in said.readline(), within=120, what="the load")
    ours = [stat.parent.name for stat in Path("/proc").glob("[0-9]*/cwd") if _in(stat, tmp_path)]
    assert len(ours) >= 5  # gateway, consumer, endpoint, two senders

    demo.send_signal(signal.SIGINT)
    _, told = demo.communicate(timeout=60)

    assert demo.returncode == 130, told
    assert "nothing is left running" in told
    assert not [pid for pid in ours if Path("/proc", pid, "exe").exists()]
    assert list(tmp_path.iterdir()) == []


def _in(link: Path, folder: Path) -> bool:
    """Whether a process works in a folder of the demo."""
    try:
        return link.readlink().is_relative_to(folder) and link.readlink() != folder
    except OSError:
        return False  # it has ended
