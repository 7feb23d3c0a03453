"""`make run` as a person uses it: at a terminal, ended by Ctrl-C, started again."""

from __future__ import annotations

import os
import pty
import select
from pathlib import Path

from tests.servers.postgres import free_port
from tests.system.harness import Site, until


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self.output = b""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.execvpe(command[0], command, env)

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def ended(self) -> bool:
        """Read what it printed; true at the end of all processes at the terminal."""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # what Linux says when nobody has the other end open
                return True
            self.output += data
        return False

    def wait(self, *, within: float = 20.0) -> int:
        until(self.ended, within=within, what=f"the end, after {self.output[-2000:]!r},")
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self._fd)
        return code


def test_make_run_ends_by_ctrl_c_and_starts_again_at_once(checkout: Path) -> None:
    """Exit 0 and no complaint of make's; the second start is up within 3 s."""
    port = free_port()
    site = Site(checkout, database_url="", port=port)
    env = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
    env["FOREBAY_GATEWAY__PORT"] = str(port)
    for _ in range(2):
        terminal = Terminal(["make", "run"], cwd=checkout, env=env)
        until(site.ready, within=30, what="/readyz")
        assert site.post("orders", b'{"order": 1}').status == 202

        terminal.type(b"\x03")

        assert terminal.wait() == 0, terminal.output.decode()
        assert b"***" not in terminal.output
        assert b"Traceback" not in terminal.output
    # What the second start may leave out is what takes long, on any machine.
    assert b"Installing" not in terminal.output
    assert f"http://127.0.0.1:{port}".encode() in terminal.output
    assert b"curl" in terminal.output
