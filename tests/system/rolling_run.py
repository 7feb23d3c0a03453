"""
Versions rolled under load, as deploy/rolling does it for plain processes behind nginx.

Each message is sent once, without an idempotency key, and must be answered 202. Who is in
rotation is watched from outside, by what nginx is given and what answers /readyz.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.servers.nginx import Nginx
from tests.servers.postgres import free_port
from tests.system.harness import Site, until
from tests.system.load import Load
from tests.system.releases import CHECKOUT, Releases
from tests.system.sent_once import SentOnce, recorded_and_stored

N = 2
QUEUE = "orders"
CANARY = "forebay-canary"
_GUARD = """
read _
until "$@"; do
  [ $? = 4 ] || break  # a deployer is still at work
  sleep 1
done
"""

ROLL = CHECKOUT / "deploy" / "rolling" / "roll"


@dataclass(kw_only=True)
class Outcome(SentOnce):
    rolls: list[str]
    """What was rolled to, in this order."""
    stopped: list[str]
    """Versions that were stopped at their first instance, and why."""
    least_in_rotation: int
    looks: int
    """How often it was looked who is in rotation and ready."""

    def check(self) -> None:
        super().check()
        assert self.looks > 0, self
        assert self.least_in_rotation >= N, self


class Watch:
    """Counts, again and again, the gateways that are in rotation and ready; keeps the least."""

    def __init__(self, site: Site, nginx: Nginx) -> None:
        self._site, self._nginx = site, nginx
        self.least = N
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _ports(self) -> list[int]:
        text = self._nginx.upstream.read_text()
        return [int(line.split()[1].rpartition(":")[2]) for line in text.splitlines()]

    def _run(self) -> None:
        while not self._over.wait(0.05):
            ports = self._ports()
            ready = sum(self._site.ready(port) for port in ports)
            # Changed meanwhile: who left may have stopped before it was asked.
            if ports == self._ports():
                self.least = min(self.least, ready)
                self.looks += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join(30)


class Rolled:
    """An installation with nothing running yet, and nginx in front of it."""

    def __init__(
        self, site: Site, *, gateways: int = N, consumers: int = N, settle: float = 1.0, closing: float = 2.0,
        start_timeout: float = 120.0,
    ) -> None:  # fmt: skip
        self.site = site
        site.queues = f"{QUEUE},{CANARY}"
        self.releases = Releases(site.folder / "releases")
        ports = [free_port() for _ in range(2 * (N + 1))]
        self.nginx = Nginx([ports[0]]).start()
        self.config = site.folder / "rolling.toml"
        environment = {k: v for k, v in site.env.items() if k.startswith(("FOREBAY_", "PYTHON"))}
        self.config.write_text(
            f'kind = "processes"\ndirectory = "{site.folder}/rolling"\n'
            f"gateways = {gateways}\nconsumers = {consumers}\nmigrate = true\njournal = false\n"
            f'command = ["{self.releases.command}"]\n'
            f"gateway_ports = {ports[: N + 1]}\nconsumer_ports = {ports[N + 1 :]}\n"
            f"[checks]\nstart_timeout = {start_timeout}\nsettle = {settle}\nstop_timeout = 60\n"
            f'[nginx]\nupstream = "{self.nginx.upstream}"\npid = "{self.nginx.folder}/nginx.pid"\n'
            f"closing = {closing}\n"
            "[environment]\n"
            + "".join(f"{name} = {json.dumps(value)}\n" for name, value in environment.items())
        )

        # Instances outlive their deployer, and so would outlive a test that is killed.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", *self._command, "stop"],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    @property
    def _command(self) -> list[str]:
        return [sys.executable, str(ROLL), "--config", str(self.config)]

    def roll(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=1_200, check=False
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The deployer at work."""
        return subprocess.Popen([*self._command, *arguments], stderr=subprocess.DEVNULL)

    def change(self, setting: str, before: str, after: str) -> None:
        """Edit the configuration."""
        text = self.config.read_text()
        line = f"\n{setting} = {before}\n"
        assert line in text
        self.config.write_text(text.replace(line, f"\n{setting} = {after}\n"))

    def migrate_no_more(self) -> None:
        """All versions have taken their steps, and a start of `forebay migrate` takes its time."""
        self.config.write_text(self.config.read_text().replace("\nmigrate = true\n", "\nmigrate = false\n"))

    @property
    def rotation(self) -> list[str]:
        """The addresses that nginx is given."""
        return [line.split()[1] for line in self.nginx.upstream.read_text().splitlines()]

    def must(self, *arguments: str) -> None:
        done = self.roll(*arguments)
        assert done.returncode == 0, done.stderr + self.logs()

    def logs(self) -> str:
        found = sorted((self.site.folder / "rolling/logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in found)

    def close(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(300)
        self.nginx.close()


def run(this: Rolled, versions: Sequence[str], *, broken: Sequence[str] = (), rate: float = 500.0) -> Outcome:
    """
    Roll to each version in turn, then try the broken ones, all of it under load.

    A version that was there just before is gone back to by `rollback`.
    """
    began = time.monotonic()
    site = this.site
    this.must("to", versions[0])
    record = site.folder / "sent.txt"
    load = Load([this.nginx.port], QUEUE, record, rate=rate, once=True)
    load.start()
    until(lambda: load.accepted >= rate / 2, within=60, what="the first answers")
    started = time.monotonic()
    watch = Watch(site, this.nginx)
    stopped = []
    for before, version in pairwise(versions):
        gone_back = versions.index(version) < versions.index(before)
        this.must(*(["rollback"] if gone_back else ["to", version]))
        this.migrate_no_more()
    this.migrate_no_more()
    for version in broken:
        done = this.roll("to", version)
        assert done.returncode == 1, done.stderr
        assert f"all instances run {versions[-1]} again" in done.stderr
        stopped.append(f"{version}: {done.stderr.splitlines()[-1].removeprefix('roll: ').partition(';')[0]}")
    watch.stop()
    seconds = time.monotonic() - started
    accepted = load.accepted
    try:
        load.stop()
    except AssertionError as error:
        print(error, file=sys.stderr)  # counted below
    this.must("smoke")
    done = site.run("verify", str(record), "--wait", "120s", "--json", timeout=600)
    recorded, stored = map(set, recorded_and_stored(site, record, QUEUE))
    return Outcome(
        rolls=list(versions), stopped=stopped, accepted=load.accepted, failed=len(load.refused),
        lost=len(recorded - stored), doubled=len(stored - recorded),
        least_in_rotation=watch.least, looks=watch.looks,
        rate=round(accepted / seconds, 1), slowest=round(load.slowest, 3),
        seconds=round(time.monotonic() - began, 1),
        verify_exit=done.returncode, verify=json.loads(done.stdout),
    )  # fmt: skip
