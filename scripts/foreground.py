"""
Runs a command for `make run` so that Ctrl-C reaches the command, and not make.

Make would otherwise be interrupted too, and end with an error although the command
drained and exited 0. On a terminal the command gets a process group of its own, in
the foreground, as a shell does it; signals sent to us are passed on. Without a
terminal this process becomes the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType


def main(command: list[str]) -> int:
    if not (sys.stdin.isatty() and os.tcgetpgrp(0) == os.getpgrp()):
        os.execvp(command[0], command)  # noqa: S606 - what we are asked to run, without a shell on purpose
    # Handing over the terminal from the background would stop us.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    ours = os.getpgrp()
    child = subprocess.Popen(command, process_group=0, preexec_fn=_take_terminal)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        while True:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            # Ctrl-Z: stop as a whole, and go on as a whole.
            os.tcsetpgrp(0, ours)
            os.killpg(ours, signal.SIGSTOP)
            os.tcsetpgrp(0, child.pid)
            os.killpg(child.pid, signal.SIGCONT)
    finally:
        os.tcsetpgrp(0, ours)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _take_terminal() -> None:
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
