"""Whatever the end of a demo, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forebay.demo.crew import Crew, DemoError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

DEMO = f"""
import signal, time
from forebay.demo.crew import Crew
crew = Crew()
child = crew.start("sleep", {SLEEP!r})
print(crew.folder, child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_closed_crew_has_ended_its_processes_and_removed_its_folder() -> None:
    with Crew() as crew:
        child = crew.start("sleep", SLEEP)
        assert child.running

    assert not alive(child.pid)
    assert not crew.folder.exists()


def test_a_demo_that_is_killed_leaves_nothing_either() -> None:
    demo = subprocess.Popen([sys.executable, "-c", DEMO], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    folder, pid = demo.stdout.readline().split()
    assert alive(int(pid))

    demo.send_signal(signal.SIGKILL)
    demo.wait()
    demo.stdout.close()

    deadline = time.monotonic() + 30
    while alive(int(pid)) or Path(folder).exists():
        assert time.monotonic() < deadline, "the guard did not do its work"
        time.sleep(0.02)


def test_a_process_that_ends_too_early_is_told_with_its_last_words() -> None:
    with Crew() as crew:
        child = crew.start("server", [sys.executable, "-c", "import sys; sys.exit('no disk')"])

        with pytest.raises(DemoError, match="server has ended:\nno disk"):
            child.until(lambda: False, within=30)


def test_a_program_that_is_not_there_is_told_by_name() -> None:
    with Crew() as crew, pytest.raises(DemoError, match=r"broker cannot be started: .*nowhere"):
        crew.start("broker", ["/nowhere/at/all"])


def test_nothing_starts_any_more_once_a_crew_is_closed() -> None:
    """The play runs in a thread, which may be about to start something when Ctrl-C comes."""
    with Crew() as crew:
        pass

    with pytest.raises(DemoError, match="is over"):
        crew.start("late", SLEEP)
