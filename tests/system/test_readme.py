"""
The README's commands do what it says, in the order in which it says them.

Lines of ```console blocks that begin with "$ " are run, in a copy of the checkout. A
command that serves (`make run`) runs on beside those that follow it, and ends by the
Ctrl-C that the README promises is enough. Other blocks are for reading.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.servers.postgres import free_port
from tests.system.harness import Process, Site, waited_for_a_core


def commands(markdown: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", markdown, re.M | re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readmes_commands_work(checkout: Path, tmp_path: Path) -> None:
    port = free_port()
    site = Site(checkout, database_url="", port=port)
    # As a first user has it: no settings but the port, so that it does not matter who has 8080 here.
    env = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
    env |= {"FOREBAY_GATEWAY__PORT": str(port), "FOREBAY_URL": site.url}
    serving: Process | None = None
    found = commands((checkout / "README.md").read_text())
    assert "make run" in found
    try:
        for command in found:
            command = command.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            if command == "make run":
                serving = Process(["make", "run"], env=env, cwd=checkout, log=tmp_path / "make-run.log")
                began = time.monotonic()
                serving.until(site.ready, within=60, what="/readyz of `make run`")
                # Ten seconds of its own: what other tests hold the cores for is not its slowness.
                took = time.monotonic() - began - waited_for_a_core(serving.pid)
                assert took <= 10, f"`make run` took {took:.1f} s to be ready"
                continue
            done = subprocess.run(
                ["bash", "-ec", command], cwd=checkout, env=env, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
            if command.startswith("curl"):
                assert "202 Accepted" in done.stdout, f"$ {command}\n{done.stdout}{done.stderr}"
        assert serving is not None
        # Without a terminal the signal goes to the whole group, as a terminal's Ctrl-C does.
        os.killpg(serving.pid, signal.SIGINT)
        serving.wait(within=20)
        assert "Traceback" not in serving.output, serving.tail()
    finally:
        if serving is not None and serving.running:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()
