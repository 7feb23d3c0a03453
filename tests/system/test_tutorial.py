"""
docs/tutorial.md, word for word: a project outside the repository, and its consumer killed in the middle.

The commands of its ```console blocks run one after the other as in one terminal: what
`cd`, `export` and `activate` do lasts. Those that serve run on beside the others.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.needs import missing_server
from tests.servers.postgres import find_binaries, free_port
from tests.system import sabotage
from tests.system.harness import Process, http, until
from tests.system.test_readme import commands

SERVING = {"forebay gateway", "forebay consume"}
STOCK = 1000


class Terminal:
    """A shell's folder and variables, kept from one command to the next, and what was started in it."""

    def __init__(self, folder: Path, env: dict[str, str], scratch: Path) -> None:
        self.folder, self.env, self._scratch = folder, env, scratch
        self.serving: dict[str, Process] = {}

    def run(self, command: str) -> str:
        after = self._scratch / "after"
        script = f"{command}\npwd > {after}.pwd; env -0 > {after}.env"
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        said = f"{done.stdout}{done.stderr}"
        if "pip" in command and any(word in said for word in ("NewConnectionError", "timed out")):
            missing_server(f"the package index does not answer: {said.strip()[-200:]}")
        assert done.returncode == 0, f"$ {command}\n{said}"
        self.folder = Path(Path(f"{after}.pwd").read_text().strip())
        pairs = Path(f"{after}.env").read_text().rstrip("\0").split("\0")
        self.env = dict(pair.split("=", 1) for pair in pairs)
        return done.stdout

    def serve(self, command: str) -> Process:
        """Start a command that goes on; one of the same words takes the place of that before."""
        log = self._scratch / f"{command.split()[-1]}.log"
        # The shell's PATH finds it, not ours; and the pid is the command's own.
        process = Process(["bash", "-c", f"exec {command}"], env=self.env, cwd=self.folder, log=log)
        self.serving[command] = process
        return process

    def close(self) -> None:
        for process in self.serving.values():
            process.end()


@pytest.fixture
def terminal(checkout: Path, postgres_url: str, tmp_path: Path) -> Iterator[Terminal]:
    """In the checkout, with the variable that the reader is told to set, on a port that is free here."""
    port = free_port()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "VIRTUAL_ENV", "PYTHON"))}
    path = [str(Path(sys.executable).parent), env["PATH"], str(find_binaries())]
    env |= {
        "PATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COMPILE": "1",  # most of what is installed is never imported here
        "FOREBAY_DATABASE__URL": postgres_url,
        "FOREBAY_GATEWAY__PORT": str(port),
        "FOREBAY_URL": f"http://127.0.0.1:{port}",
    }
    terminal = Terminal(checkout, env, scratch)
    yield terminal
    terminal.close()


def orders(url: str) -> tuple[Counter[str], int]:
    """How many rows each order has, and how many copies have left the stock."""
    with psycopg.connect(url) as db:
        rows = Counter(str(id) for (id,) in db.execute("select message_id from orders"))
        found = db.execute("select sum(%s - copies) from stock", [STOCK]).fetchone()
    assert found is not None
    return rows, int(found[0])


def supervised(terminal: Terminal, command: str, database_url: str) -> int:
    """Start it; when it dies of SIGKILL, start it again, once. How many rows there were in between."""
    dying = terminal.serve(command)
    assert dying.wait(within=60) == -9, dying.tail()
    rows, _ = orders(database_url)
    terminal.serve(command)
    return len(rows)


def test_the_tutorial_does_what_it_says_and_its_effects_survive_kill_9(
    terminal: Terminal, postgres_url: str, tmp_path: Path
) -> None:
    for command in commands((tmp_path / "forebay/docs/tutorial.md").read_text()):
        if command in SERVING:
            process = terminal.serve(command)
            if command == "forebay gateway":
                process.until(partial(_answers, terminal.env["FOREBAY_URL"]), what="the gateway")
            continue
        if command == "forebay dead-letters list":
            # A reader types more slowly than this, and a consumer needs a moment.
            until(lambda: "no such book" in terminal.run("forebay dead-letters list"), what="the dead letter")
        else:
            terminal.run(command)
    sent = [json.loads(line) for line in (terminal.folder / "orders.ndjson").read_text().splitlines()]
    copies = sum(order["copies"] for order in sent)
    rows, gone = orders(postgres_url)
    assert (len(rows), set(rows.values()), gone) == (20, {1}, copies)
    # What runs is the project, not a part of this checkout.
    where = terminal.run("python -c 'import bookshop, forebay; print(bookshop.__file__, forebay.__file__)'")
    assert all(file.startswith(str(terminal.folder)) for file in where.split()), where
    terminal.serving["forebay consume"].stop()

    for times, moment in enumerate(("die_in_handler", "die_handled"), start=2):
        terminal.run(f"forebay send orders --ndjson orders.ndjson --record {moment}.txt")
        order = terminal.folder / moment
        order.touch()
        command = shlex.join(["python", str(sabotage.__file__), f"{moment}={order}", "consume", "orders"])
        committed = supervised(terminal, command, postgres_url) - 20 * (times - 1)
        assert (committed == 0) == (moment == "die_in_handler"), f"{moment}: {committed} rows"
        assert not order.exists()
        done = json.loads(terminal.run(f"forebay verify {moment}.txt --wait 60s --json"))
        assert (done["done"], done["dead"], done["lost"], done["duplicated"]) == (20, 0, 0, 0), done
        rows, gone = orders(postgres_url)
        assert (len(rows), set(rows.values()), gone) == (20 * times, {1}, copies * times), moment
        terminal.serving[command].stop()


def _answers(url: str) -> bool:
    try:
        return http("GET", f"{url}/readyz", timeout=2).status == 200
    except OSError:
        return False
