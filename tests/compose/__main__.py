"""
`make compose-test`: docker-compose.yml, run by a real engine, on RabbitMQ and on Kafka.

    make compose-test                  both
    make compose-test ONLY=kafka

The image is built, the stack comes up from nothing, and 10,000 flights go through it
while a consumer is killed, the gateway is restarted and the consumers become four;
`forebay verify`, run inside the network, judges. Then the tutorial's project takes the
place of the consumers, as docs/tutorial.md says (tests/compose/tutorial.py). One dated
row in bench/results.

It runs beside your own stack: as a project of its own, on free ports, removed with its
volumes at the end. The image `forebay:local` is built anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.report import Target, record
from bench.report import versions as versions_of
from tests import flights
from tests.compose import tutorial
from tests.compose.stack import ENV_FILES, PROJECT, ROOT, Stack, started_at
from tests.system.harness import FOREBAY, Process, until

COUNT, RATE = 10_000, 500

# Within a container all but the process that reaps, and itself.
KILL_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"


def run(broker: str, folder: Path) -> dict[str, Any]:
    stack = Stack(broker)
    stack.remove()
    try:
        return _run(stack, broker, folder)
    finally:
        stack.remove()
        assert stack.volumes() == [], "`down -v` leaves nothing"


def _run(stack: Stack, broker: str, folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {"seconds_to_healthy": stack.up()}
    ports = {("gateway", "127.0.0.1", stack.gateway_port)}
    if broker == "rabbitmq":
        ports.add(("rabbitmq", "127.0.0.1", stack.ui_port))
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.ui_port}/", timeout=10) as page:
            assert b"RabbitMQ Management" in page.read()
    assert stack.published() == ports
    assert stack.healthy("consumer") == 2
    # An anonymous one would be left behind by `down`.
    assert stack.mounted() == {f"{PROJECT}_{name}" for name in ("secrets", "consumers", "postgres", broker)}

    before = stack.ids()
    figures["seconds_of_second_up"] = stack.up()
    assert stack.ids() == before, "a second `up` recreated something"

    sent, lines = folder / "sent.txt", folder / "flights.ndjson"
    flights.write_ndjson(lines, COUNT)
    sender = Process(
        [
            FOREBAY, "send", "orders", "--ndjson", str(lines), "--url", stack.url, "--record", str(sent),
            "--rate", str(RATE), "--json",
        ],
        env=os.environ, cwd=folder, log=folder / "send.log",
    )  # fmt: skip
    try:
        figures["accepted_when"] = _trouble(stack, sender, sent)
        assert sender.wait(within=120) == 0, sender.tail()
    finally:
        sender.end()
    figures["verify"] = _verify(stack, folder)

    # The volumes are the installation: without its containers it is still the same one.
    stack.compose("down")
    figures["seconds_to_healthy_with_data"] = stack.up()
    again = _verify(stack, folder)
    assert again["stored"] == figures["verify"]["stored"]

    figures["tutorial"] = tutorial.run(stack, folder)
    return figures


def _trouble(stack: Stack, sender: Process, sent: Path) -> dict[str, int]:
    """
    A killed consumer, a restarted gateway and two more consumers, each while messages are sent.

    How many had been accepted when each was over.
    """

    def accepted() -> int:
        return sent.read_bytes().count(b"\n") if sent.exists() else 0

    def reached(count: int) -> None:
        sender.until(lambda: accepted() >= count, within=120, what=f"{count} accepted messages")

    when = {}
    reached(COUNT // 10)
    victim = min(stack.ids("consumer"))
    since = started_at(victim)
    subprocess.run(["docker", "exec", victim, "python", "-c", KILL_ALL], capture_output=True)
    until(lambda: started_at(victim) != since, within=30, what="the restart of the killed consumer")
    when["consumer_killed"] = accepted()

    reached(3 * COUNT // 10)
    stack.compose("restart", "gateway")
    when["gateway_restarted"] = accepted()

    reached(5 * COUNT // 10)
    stack.compose("up", "-d", "--scale", "consumer=4")
    when["two_consumers_added"] = accepted()
    until(lambda: stack.healthy("consumer") == 4, within=120, what="four healthy consumers", every=0.5)
    assert max(when.values()) < COUNT, f"the load was over before the trouble: {when}; send slower"
    return when


def _verify(stack: Stack, folder: Path) -> dict[str, Any]:
    text = stack.compose(
        "run", "--rm", "--no-deps", "-T", "-v", f"{folder}:/ledger:ro",
        "consumer", "verify", "/ledger/sent.txt", "--wait", "2m", "--json",
    )  # fmt: skip
    found: dict[str, Any] = json.loads(text)
    figures = (
        "recorded", "stored", "dead", "waiting", "lost", "duplicated", "altered",
        "stored_after_more_than_one_attempt",
    )  # fmt: skip
    return {name: found[name] for name in figures}


def engine() -> dict[str, str]:
    commands = {
        "engine": ["docker", "version", "--format", "{{.Server.Version}}"],
        "compose": ["docker", "compose", "version", "--short"],
    }
    out = {}
    for name, command in commands.items():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"`{' '.join(command)}` fails: {done.stderr.strip()}; start Docker, then repeat")
        out[name] = done.stdout.strip()
    return out


def main(only: list[str]) -> int:
    unknown = set(only) - set(ENV_FILES)
    if unknown:
        print(f"no stack on {', '.join(sorted(unknown))}; there are: {', '.join(ENV_FILES)}", file=sys.stderr)
        return 2
    if shutil.which("docker") is None:
        sys.exit("there is no `docker` here; install Docker with its compose plugin")
    versions = versions_of() | engine()
    began = time.monotonic()
    subprocess.run(["docker", "compose", "build", "--quiet"], cwd=ROOT, check=True)
    figures: dict[str, Any] = {"seconds_to_build": round(time.monotonic() - began, 1)}
    targets = []
    for broker in only or ENV_FILES:
        print(f"{broker} ...", file=sys.stderr)
        # Readable by the user of the container, who is another one.
        with tempfile.TemporaryDirectory(prefix="forebay-compose-") as name:
            Path(name).chmod(0o755)
            figures[broker] = run(broker, Path(name))
        print(f"{broker}: {figures[broker]}", file=sys.stderr)
        found = figures[broker]["verify"]
        targets.append(Target(f"{broker}: stored", found["stored"], COUNT, at_most=False))
        targets += [
            Target(f"{broker}: {what}", found[what], 0, at_most=True)
            for what in ("lost", "duplicated", "altered", "dead", "waiting")
        ]
        shop = figures[broker]["tutorial"]
        targets += [
            Target(f"{broker}: tutorial's orders done", shop["done"], tutorial.COUNT, at_most=False),
            Target(f"{broker}: tutorial's orders done twice", shop["twice"], 0, at_most=True),
        ]
    return record(
        "compose",
        figures,
        targets,
        versions,
        command=" ".join(["make compose-test", *(f"ONLY={name}" for name in only)]),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
