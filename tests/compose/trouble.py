"""
Trouble that those who send do not notice.

Each time a steady load without idempotency keys goes on through nginx. Not one request may
fail, and `forebay verify` and the rows must say that all of them took effect once.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.compose.stack import Stack
from tests.system.harness import FOREBAY, until
from tests.system.load import Load

RATE = 200.0
"""Requests a second: what two busy cores do beside a whole stack."""

CONNECTIONS = 50
"""Each is used some times a second. One that is idle may be closed by a reload of nginx (docs/proxies.md)."""

QUEUE = "orders"


def containers_changed(stack: Stack, folder: Path) -> dict[str, Any]:
    """Gateways and consumers are killed, and become more and fewer."""

    def trouble(flows: Callable[[float], None]) -> dict[str, Any]:
        for service in ("gateway", "consumer"):
            victim = min(stack.ids(service))
            docker("kill", victim)
            flows(5)
            docker("start", victim)
            flows(5)
        until(lambda: stack.in_rotation() == 2, within=120, what="both gateways in rotation", every=1)
        for number in (4, 2):
            stack.compose("up", "-d", "--scale", f"gateway={number}")
            until(lambda: stack.in_rotation() == number, within=180, what=f"{number} in rotation", every=1)  # noqa: B023
            flows(3)
        return {"gateways_in_rotation": [2, 4, 2]}

    return under_load(stack, folder / "changed.txt", trouble)


def broker_nodes_killed(stack: Stack, folder: Path) -> dict[str, Any]:
    """Each node of the cluster dies once, and comes back before the next one does."""

    def trouble(flows: Callable[[float], None]) -> dict[str, Any]:
        for node in stack.brokers:
            [victim] = stack.ids(node)
            docker("kill", victim)
            flows(10)
            docker("start", victim)
            until(lambda: stack.healthy(node) == 1, within=240, what=f"{node} to be back", every=2)  # noqa: B023
            flows(10)
        return {"nodes_killed": list(stack.brokers)}

    return under_load(stack, folder / "nodes.txt", trouble)


def under_load(
    stack: Stack, record: Path, trouble: Callable[[Callable[[float], None]], dict[str, Any]]
) -> dict[str, Any]:
    """The trouble is given `flows(seconds)`: it returns when as much was answered as is sent in them."""
    before = int(stack.sql(f"SELECT count(*) FROM messages WHERE queue = '{QUEUE}';"))
    load = Load(
        [stack.port], QUEUE, record, rate=RATE, once=True, api_key=stack.api_key, connections=CONNECTIONS
    )
    load.start()

    def answered() -> int:
        return load.accepted + len(load.refused)

    def flows(seconds: float) -> None:
        enough = answered() + seconds * RATE
        until(lambda: answered() >= enough, within=60 + 20 * seconds, what="more answers", every=0.2)

    flows(5)
    figures = trouble(flows)
    refused = list(load.refused)
    load.refused.clear()  # counted, not raised
    load.stop()
    refused += load.refused
    found = stack.verify(record)
    rows = int(stack.sql(f"SELECT count(*) FROM messages WHERE queue = '{QUEUE}';")) - before
    return figures | {
        "accepted": load.accepted,
        "failed": len(refused),
        "first_failure": refused[0] if refused else None,
        "durability": dict(load.durabilities),
        "slowest_seconds": round(load.slowest, 2),
        "lost": found["lost"],
        "duplicated": found["duplicated"],
        "rows_too_many": rows - load.accepted,
    }


def journal_kept(stack: Stack, folder: Path) -> dict[str, Any]:
    """
    The broker is away, and gateways journal. All of them are recreated, and then four become one.
    """
    record = folder / "journaled.txt"
    # --no-deps, or Compose would start the broker.
    stack.compose("stop", *stack.brokers)
    sent = send(stack, record, 2000)
    stack.compose("up", "-d", "--no-deps", "--force-recreate", "--wait", "--wait-timeout", "240", "gateway")
    until(lambda: stack.in_rotation() == 2, within=120, what="two gateways in rotation", every=1)
    stack.compose("up", "-d", "--no-deps", "--no-recreate", "--scale", "gateway=4", "gateway")
    until(lambda: stack.in_rotation() == 4, within=180, what="four gateways in rotation", every=1)
    sent += send(stack, record, 2000)
    stack.compose("up", "-d", "--no-deps", "--no-recreate", "--scale", "gateway=1", "gateway")
    until(lambda: stack.in_rotation() == 1, within=120, what="one gateway in rotation", every=1)
    held = stack.compose("exec", "-T", "gateway", "forebay", "journal", "status", "--json")
    stack.compose("start", *stack.brokers)
    found = stack.verify(record)
    stack.up()
    return {
        "sent": sent,
        "in_the_journal": sum(part["messages"] or 0 for part in json.loads(held)),
        "stored": found["stored"],
        "lost": found["lost"],
        "duplicated": found["duplicated"],
    }


def send(stack: Stack, record: Path, count: int) -> int:
    """So many messages by `forebay send`; how many were accepted."""
    before = record.read_bytes().count(b"\n") if record.exists() else 0
    lines = "".join(f'{{"journaled": {before + n}}}\n' for n in range(count))
    subprocess.run(
        [FOREBAY, "send", QUEUE, "--ndjson", "-", "--record", str(record)],
        input=lines, env=stack.sender, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return record.read_bytes().count(b"\n") - before


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)
