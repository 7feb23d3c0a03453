"""docker-compose.yml as a project of the test's own: on free ports, with volumes that go with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.servers.postgres import free_port

ROOT = Path(__file__).parents[2]
PROJECT = "forebay-compose-test"

STACKS: dict[str, tuple[str, ...]] = {
    "rabbitmq": (),
    "kafka": ("--env-file", str(ROOT / "deploy/kafka.env")),
    "cluster": ("--profile", "cluster"),
    "kafka-cluster": ("--env-file", str(ROOT / "deploy/kafka-cluster.env")),
    "rolling": (),
}
"""What `docker compose` is told, as docs/compose.md says."""

BROKERS = {
    "rabbitmq": ("rabbitmq",),
    "kafka": ("kafka",),
    "cluster": ("rabbitmq", "rabbitmq-2", "rabbitmq-3"),
    "kafka-cluster": ("kafka", "kafka-2", "kafka-3"),
    "rolling": ("rabbitmq",),
}
"""The services that are the broker."""


class Stack:
    """The project of this test: one of STACKS."""

    def __init__(self, name: str) -> None:
        self._files: tuple[str, ...] = ()
        self.command = [
            "docker", "compose", "--project-directory", str(ROOT), "-f", str(ROOT / "docker-compose.yml"),
            *STACKS[name], "-p", PROJECT,
        ]  # fmt: skip
        self.brokers = BROKERS[name]
        self.port, self.operators_port = free_port(), free_port()
        # Variables of the caller would override the file's.
        ours = (
            "FOREBAY_",
            "COMPOSE_",
            "BROKER",
            "DATABASE",
            "DRAIN",
            "SETTINGS",
            "RABBITMQ",
            "KAFKA",
            "POSTGRES",
        )
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.endswith("_REPLICAS")
        } | {"PORT": str(self.port), "OPERATORS_PORT": str(self.operators_port)}

    @cached_property
    def api_key(self) -> str:
        shown = self.compose("run", "--rm", "-T", "setup", "show")
        found = re.search(r"FOREBAY_API_KEY=(fbk_\w+)", shown)
        assert found is not None, shown
        return found[1]

    @property
    def sender(self) -> dict[str, str]:
        """The environment of a `forebay` that sends to this stack."""
        return self.env | {"FOREBAY_URL": self.url, "FOREBAY_API_KEY": self.api_key}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def changed_by(self, *files: str) -> Stack:
        """The same project with more compose files, named as from the checkout."""
        other = copy(self)
        other._files = tuple(part for file in files for part in ("-f", str(ROOT / file)))
        return other

    def compose(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            [*self.command, *self._files, *arguments], env=self.env, input=stdin,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        if check and done.returncode != 0:
            logs = self.compose("logs", "--tail", "30", check=False)
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: exit code {done.returncode}\n"
                f"{done.stderr}{done.stdout}\n{logs}"
            )
        return done.stdout

    def up(self, *arguments: str) -> float:
        """Seconds until all is healthy."""
        began = time.monotonic()
        self.compose("up", "-d", "--wait", *arguments)
        return round(time.monotonic() - began, 1)

    def containers(self, *services: str) -> list[dict[str, Any]]:
        lines = self.compose("ps", "--all", "--format", "json", *services).splitlines()
        return [json.loads(line) for line in lines]

    def ids(self, *services: str) -> set[str]:
        return {str(c["ID"]) for c in self.containers(*services)}

    def healthy(self, service: str) -> int:
        return sum(c["Health"] == "healthy" for c in self.containers(service))

    def published(self) -> set[tuple[str, str, int]]:
        """What this machine can reach: service, address, port."""
        return {
            (c["Service"], p["URL"], p["PublishedPort"])
            for c in self.containers()
            for p in c["Publishers"] or ()
            if p["PublishedPort"]
        }

    def mounted(self) -> set[str]:
        """The volumes that the containers use, by name; an anonymous one has a number for it."""
        names = "{{range .Mounts}}{{.Name}} {{end}}"
        inspected = subprocess.run(
            ["docker", "inspect", "--format", names, *self.ids()], capture_output=True, text=True, check=True
        )
        return set(inspected.stdout.split())

    def volumes(self) -> list[str]:
        label = f"label=com.docker.compose.project={PROJECT}"
        listed = subprocess.run(
            ["docker", "volume", "ls", "-q", "--filter", label], capture_output=True, text=True, check=True
        )
        return listed.stdout.split()

    def in_rotation(self) -> int:
        """Gateways that nginx gives requests to."""
        listed = self.compose("exec", "-T", "nginx", "cat", "/etc/forebay-nginx/upstream/gateways.conf")
        return len(re.findall(r"^server [0-9.]+:8080", listed, re.MULTILINE))

    def sql(self, statements: str) -> str:
        return self.compose(
            "exec", "-T", "postgres", "psql", "-U", "forebay", "-qtA", "--set", "ON_ERROR_STOP=1",
            stdin=statements,
        )  # fmt: skip

    def verify(self, record: Path) -> dict[str, Any]:
        """What `forebay verify` says of a record, inside the network and once nothing waits."""
        text = self.compose(
            "run", "--rm", "--no-deps", "-T", "-v", f"{record.parent}:/ledger:ro",
            "consumer", "verify", f"/ledger/{record.name}", "--wait", "4m", "--json", check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(text)
        return found

    def remove(self) -> None:
        self.compose("--profile", "*", "down", "-v", "--remove-orphans")


def started_at(container: str) -> str:
    return subprocess.run(
        ["docker", "inspect", "--format", "{{.State.StartedAt}}", container],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
