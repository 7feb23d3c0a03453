"""docker-compose.yml as a project of the test's own: on free ports, with volumes that go with it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from copy import copy
from pathlib import Path
from typing import Any

from tests.servers.postgres import free_port

ROOT = Path(__file__).parents[2]
PROJECT = "forebay-compose-test"
ENV_FILES = {"rabbitmq": ".env", "kafka": "deploy/kafka.env"}


class Stack:
    """The project of this test on one broker."""

    def __init__(self, broker: str) -> None:
        self._files: tuple[str, ...] = ()
        self._command = [
            "docker", "compose", "--project-directory", str(ROOT), "-f", str(ROOT / "docker-compose.yml"),
            "--env-file", str(ROOT / ENV_FILES[broker]), "-p", PROJECT,
        ]  # fmt: skip
        self.gateway_port, self.ui_port = free_port(), free_port()
        # Variables of the caller would override the file's.
        ours = ("FOREBAY_", "COMPOSE_", "BROKER", "CONSUMER_REPLICAS")
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {
            "GATEWAY_PORT": str(self.gateway_port),
            "RABBITMQ_UI_PORT": str(self.ui_port),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def changed_by(self, *files: str) -> Stack:
        """The same project with more compose files, named as from the checkout."""
        other = copy(self)
        other._files = tuple(part for file in files for part in ("-f", str(ROOT / file)))
        return other

    def compose(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            [*self._command, *self._files, *arguments], env=self._env, input=stdin,
            capture_output=True, text=True, timeout=300,
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

    def remove(self) -> None:
        self.compose("--profile", "*", "down", "-v", "--remove-orphans")


def started_at(container: str) -> str:
    return subprocess.run(
        ["docker", "inspect", "--format", "{{.State.StartedAt}}", container],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
