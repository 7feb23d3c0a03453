"""
Gateways that are killed behind nginx, under a load of clients that know nothing of retries.

Each message is sent once, without an idempotency key, and must be answered 202; a system test
has a cut of it, `make soak` all of it.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.servers.nginx import Nginx
from tests.servers.postgres import free_port
from tests.system import sabotage
from tests.system.harness import FOREBAY, Process, Site, until
from tests.system.load import Load
from tests.system.sent_once import SentOnce, recorded_and_stored

QUEUE = "proxied"


@dataclass(kw_only=True)
class Outcome(SentOnce):
    kills: int
    asked_again: int
    """Requests that nginx took to another gateway, because the first one gave no answer."""

    def check(self) -> None:
        super().check()
        assert self.asked_again > 0, self


class Proxied:
    """Two gateways and a consumer behind nginx. `how` is the sabotage that the gateways suffer."""

    def __init__(self, site: Site, *, how: str = "", files: dict[str, str] | None = None) -> None:
        self.site = site
        site.queues = QUEUE
        self._how = how
        self._logs = itertools.count()
        self.ports = [site.port, free_port()]
        self.gateways = [self._start(port) for port in self.ports]
        self.consumer = site.consumer()
        for number in range(len(self.ports)):
            self._await_ready(number)
        self.nginx = Nginx(self.ports, files=files)
        self.nginx.start()

    def _start(self, port: int) -> Process:
        program = [sys.executable, str(sabotage.__file__), self._how] if self._how else [FOREBAY]
        process = Process(
            [*program, "gateway", "--port", str(port)], env=self.site.env, cwd=self.site.folder,
            log=self.site.folder / f"gateway-{next(self._logs)}.log",
        )  # fmt: skip
        self.site.processes.append(process)
        return process

    def _await_ready(self, number: int) -> None:
        port = self.ports[number]
        self.gateways[number].until(lambda: self.site.ready(port), within=60, what="the gateway's /readyz")

    def kill(self, number: int) -> None:
        """SIGKILL, and the same gateway started again; returns when it takes messages."""
        self.gateways[number].kill()
        self.gateways[number] = self._start(self.ports[number])
        self._await_ready(number)

    def stop(self) -> None:
        self.nginx.stop()
        for process in (*self.gateways, self.consumer):
            if process.running:
                assert process.stop() == 0, process.tail()

    def close(self) -> None:
        self.nginx.close()
        self.site.close()


def run(site: Site, *, rate: float, kills: int, seed: int = 1) -> Outcome:
    """One gateway after the other is killed, at moments by chance, while the other one is there."""
    began = time.monotonic()
    chance = random.Random(seed)
    this = Proxied(site)
    try:
        record = site.folder / "sent.txt"
        load = Load([this.nginx.port], QUEUE, record, rate=rate, once=True)
        load.start()
        started = time.monotonic()

        def flows(messages: float) -> None:
            enough = len(load.ids) + len(load.refused) + messages
            until(lambda: len(load.ids) + len(load.refused) >= enough, within=120, what="more answers")

        flows(rate)
        for number in range(kills):
            # The moment within a group commit is what is random, so here time itself is waited for.
            time.sleep(chance.uniform(0, 0.3))
            this.kill(number % 2)
            flows(rate / 4)
        refused: Sequence[str] = load.refused
        seconds = time.monotonic() - started
        accepted = load.accepted
        try:
            load.stop()
        except AssertionError as error:
            print(error, file=sys.stderr)  # counted below
        verified = site.run("verify", str(record), "--wait", "120s", "--json", timeout=600)
        recorded, stored = map(set, recorded_and_stored(site, record, QUEUE))
        asked = [json.loads(line) for line in this.nginx.access_log.splitlines()]
        this.stop()
    finally:
        this.close()
    return Outcome(
        kills=kills, accepted=load.accepted, failed=len(refused),
        asked_again=sum("," in line["gateway"] for line in asked),
        lost=len(recorded - stored), doubled=len(stored - recorded),
        rate=round(accepted / seconds, 1), slowest=round(load.slowest, 3),
        seconds=round(time.monotonic() - began, 1),
        verify_exit=verified.returncode, verify=json.loads(verified.stdout),
    )  # fmt: skip
