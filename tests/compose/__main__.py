"""
`make compose-test`: docker-compose.yml, run by a real engine.

    make compose-test                  on RabbitMQ, on Kafka, on clusters of both, and a rolling deploy
    make compose-test ONLY=kafka       rabbitmq, kafka, cluster (RabbitMQ's), kafka-cluster or rolling

The image is built and the stack comes up from nothing. On one node 50,000 messages go
through nginx; gateways and consumers are killed and become more and fewer under a load
without idempotency keys; a journal outlives its gateways; four consumers are compared
with two; the stack goes down and up; and the tutorial's project takes the place of the
consumers (tests/compose/tutorial.py). On a cluster each broker node is killed under
load; and deploy/rolling rolls (tests/compose/rolling.py). `forebay verify`, run inside the
network, judges. A dated row each in bench/results.

It runs beside your own stack: as a project of its own, on free ports, removed with its
volumes at the end. The image `forebay:local` is built anew.
"""

from __future__ import annotations

import json
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
from tests.compose import drain, rolling, trouble, tutorial
from tests.compose.stack import PROJECT, ROOT, STACKS, Stack
from tests.system.harness import FOREBAY

COUNT = 50_000


def run(name: str, folder: Path) -> dict[str, Any]:
    stack = Stack(name)
    stack.remove()
    try:
        figures = {"seconds_to_healthy": stack.up()}
        if name == "rolling":
            return figures | {"rolled": _said(rolling.rolled(stack, folder))}
        parts = _cluster if len(stack.brokers) > 1 else _one_node
        return figures | parts(stack, folder)
    finally:
        stack.remove()
        assert stack.volumes() == [], "`down -v` leaves nothing"


def _one_node(stack: Stack, folder: Path) -> dict[str, Any]:
    _as_documented(stack)
    before = stack.ids()
    figures: dict[str, Any] = {"seconds_of_second_up": stack.up()}
    assert stack.ids() == before, "a second `up` recreated something"

    sent = folder / "sent.txt"
    figures["seconds_to_send"] = _send_all(stack, folder, sent)
    figures["verify"] = _verified(stack, sent)
    figures["containers_changed"] = _said(trouble.containers_changed(stack, folder))
    figures["journal"] = _said(trouble.journal_kept(stack, folder))
    figures["consumers"] = _said(drain.run(stack, folder))

    # The volumes are the installation: without its containers it is still the same one.
    key = stack.api_key
    stack.compose("down")
    figures["seconds_to_healthy_with_data"] = stack.up()
    assert key in stack.compose("run", "--rm", "-T", "setup", "show")
    assert _verified(stack, sent)["stored"] == figures["verify"]["stored"]

    figures["tutorial"] = tutorial.run(stack, folder)
    return figures


def _cluster(stack: Stack, folder: Path) -> dict[str, Any]:
    return {"broker_nodes_killed": _said(trouble.broker_nodes_killed(stack, folder))}


def _as_documented(stack: Stack) -> None:
    """What is published, how many there are, and which volumes."""
    ports = {("nginx", "127.0.0.1", stack.port), ("nginx", "127.0.0.1", stack.operators_port)}
    assert stack.published() == ports
    assert (stack.healthy("gateway"), stack.healthy("consumer"), stack.in_rotation()) == (2, 2, 2)
    # An anonymous one would be left behind by `down`.
    names = {"secrets", "journal", "consumers", "postgres", *stack.brokers}
    assert stack.mounted() == {f"{PROJECT}_{name}" for name in names}
    if "rabbitmq" in stack.brokers:
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.operators_port}/rabbitmq/", timeout=10) as page:
            assert b"RabbitMQ Management" in page.read()


def _send_all(stack: Stack, folder: Path, sent: Path) -> float:
    """Seconds until all were accepted."""
    lines = folder / "orders.ndjson"
    lines.write_text("".join(f'{{"order": {n}, "customer": "c-{n % 977}"}}\n' for n in range(COUNT)))
    began = time.monotonic()
    done = subprocess.run(
        [FOREBAY, "send", "orders", "--ndjson", str(lines), "--record", str(sent), "--json"],
        env=stack.sender, cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return round(time.monotonic() - began, 1)


def _verified(stack: Stack, sent: Path) -> dict[str, Any]:
    found = stack.verify(sent)
    names = ("recorded", "stored", "dead", "waiting", "lost", "duplicated", "altered")
    return {name: found[name] for name in names}


def _said(figures: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(figures), file=sys.stderr)
    return figures


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


def targets_of(name: str, figures: dict[str, Any]) -> list[Target]:
    def none(where: str, *whats: str) -> list[Target]:
        return [Target(f"{name}: {where}: {what}", figures[where][what], 0, at_most=True) for what in whats]

    unnoticed = ("failed", "lost", "duplicated", "rows_too_many")
    if "broker_nodes_killed" in figures:
        return none("broker_nodes_killed", *unnoticed)
    if "rolled" in figures:
        rolled = figures["rolled"]
        ended_well = [code == 0 for code in rolled["exit_codes"]]
        return [
            *none("rolled", *unnoticed),
            Target(f"{name}: gateways in rotation", rolled["least_in_rotation"], 2, at_most=False),
            # To 1, to 2, back, to one that does not start, and the smoke test.
            Target(
                f"{name}: ended as it should", ended_well == [True, True, True, False, True], 1, at_most=False
            ),
        ]
    journal, tutorials = figures["journal"], figures["tutorial"]
    return [
        Target(f"{name}: stored", figures["verify"]["stored"], COUNT, at_most=False),
        *none("verify", "lost", "duplicated", "altered", "dead", "waiting"),
        *none("containers_changed", *unnoticed),
        Target(f"{name}: journaled", journal["in_the_journal"], journal["sent"], at_most=False),
        *none("journal", "lost", "duplicated"),
        Target(f"{name}: four consumers to two", figures["consumers"]["four_to_two"], 1.8, at_most=False),
        *none("consumers", "lost", "duplicated"),
        Target(f"{name}: tutorial's orders done", tutorials["done"], tutorial.COUNT, at_most=False),
        Target(f"{name}: tutorial's orders done twice", tutorials["twice"], 0, at_most=True),
    ]


def main(only: list[str]) -> int:
    unknown = set(only) - set(STACKS)
    if unknown:
        print(f"no stack {', '.join(sorted(unknown))}; there are: {', '.join(STACKS)}", file=sys.stderr)
        return 2
    if shutil.which("docker") is None:
        sys.exit("there is no `docker` here; install Docker with its compose plugin")
    versions = versions_of() | engine()
    began = time.monotonic()
    subprocess.run(["docker", "compose", "build", "--quiet"], cwd=ROOT, check=True)
    building = round(time.monotonic() - began, 1)
    code = 0
    for name in only or STACKS:
        print(f"{name} ...", file=sys.stderr)
        # Readable by the user of the container, who is another one.
        with tempfile.TemporaryDirectory(prefix="forebay-compose-") as folder:
            Path(folder).chmod(0o755)
            figures = run(name, Path(folder))
        code |= record(
            "compose",
            {"seconds_to_build": building, name: figures},
            targets_of(name, figures),
            versions,
            command=f"make compose-test ONLY={name}",
        )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
