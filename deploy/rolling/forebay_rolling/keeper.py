"""
Keeps one plain process running: `python3 -m forebay_rolling.keeper FOLDER`.

It outlives the deployer that started it. FOLDER has `instance.json` (what to run); the keeper writes
`running.json` there and holds a lock on `alive` as long as it lives, so that nobody signals a
process that merely has an old one's number. A command that ends is started again, after a pause that
doubles; SIGTERM is handed on, and the command's exit code is the last word in `running.json`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from forebay_rolling.state import replace

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between the end of a command and its next start."""

_PR_SET_PDEATHSIG = 1


def main(folder: Path) -> int:
    description = json.loads((folder / "instance.json").read_text())
    return Keeper(folder, description).run()


class Keeper:
    """One command, for as long as nobody says SIGTERM."""

    def __init__(self, folder: Path, description: dict[str, object]) -> None:
        self._folder = folder
        self._command = description["command"]
        self._environment = description["environment"]
        self._cwd = description["working_directory"]
        self._starts = 0
        self._stopping = False
        self._libc = ctypes.CDLL(None)

    def run(self) -> int:
        # Blocked but while we wait for it, so that none comes between the look and the wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        signal.signal(signal.SIGTERM, self._no_op)
        signal.signal(signal.SIGCHLD, self._no_op)
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping:
                return 0
            print(f"keeper: it ended with {code}", file=sys.stderr, flush=True)
            pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else pause
            if signal.sigtimedwait({signal.SIGTERM}, pause) is not None:
                self._say(pid=None, code=0)  # nothing ran that could have been stopped badly
                return 0
            pause = min(pause * 2, LONGEST_PAUSE)

    def _run_once(self) -> int:
        self._starts += 1
        try:
            child = subprocess.Popen(
                self._command,  # type: ignore[call-overload]
                env=self._environment, cwd=self._cwd, stdin=subprocess.DEVNULL,
                preexec_fn=self._before_exec,
            )  # fmt: skip
        except OSError as error:
            print(f"keeper: cannot start it: {error}", file=sys.stderr, flush=True)
            self._say(pid=None, code=127)
            return 127
        self._say(pid=child.pid, code=None)
        while (code := child.poll()) is None:
            asked = signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGTERM
            # Once: to Forebay a second one means "without draining".
            if asked and not self._stopping:
                self._stopping = True
                child.terminate()
        self._say(pid=None, code=code)
        return int(code)

    def _before_exec(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        # Without its keeper nobody could stop it in order: then it drains and ends.
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _say(self, *, pid: int | None, code: int | None) -> None:
        running = {"keeper": os.getpid(), "pid": pid, "starts": self._starts, "code": code}
        replace(self._folder / "running.json", json.dumps(running))

    @staticmethod
    def _no_op(number: int, frame: FrameType | None) -> None:
        """A signal that is ignored would not be waited for."""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
