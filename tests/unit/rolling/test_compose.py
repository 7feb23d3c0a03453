"""What the deployer makes of a compose stack, on a docker in memory that does as docker does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forebay_rolling.compose import Containers
from forebay_rolling.config import Checks, Compose, Config
from forebay_rolling.errors import CheckFailed
from forebay_rolling.rolling import Roll
from forebay_rolling.state import Store


@dataclass
class Container:
    service: str
    name: str
    image: str
    address: str
    running: bool = True
    code: int = 0
    restarts: int = 0


class Docker:
    """One stack; `docker compose up` starts containers that are stopped before it makes new ones."""

    def __init__(self) -> None:
        self.containers: list[Container] = []
        self.broken: set[str] = set()
        """Images whose containers end with 1."""
        self.held = False
        self.proven: list[str] = []
        self._inside: list[str] = []

    def of(self, service: str) -> list[Container]:
        return [one for one in self.containers if one.service == service]

    def __call__(
        self,
        command: Sequence[str],
        more: Mapping[str, str] | None = None,
        *,
        stdin: bytes = b"",
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[bytes]:
        match list(command):
            case ["docker", "compose", "ps", "--quiet", service]:
                told = "\n".join(one.name for one in self.of(service) if one.running)
            case ["docker", "compose", "rm", "--force", service]:
                self.containers = [one for one in self.containers if one.service != service or one.running]
                told = ""
            case ["docker", "compose", "up", *_, "--scale", scale, service]:
                self._up(service, int(scale.partition("=")[2]), (more or {}).get("FOREBAY_IMAGE", ""))
                told = ""
            case ["docker", "compose", "exec", "-T", "nginx", "sh", "-c", script, _, *arguments]:
                told = self._nginx(script, arguments)
            case ["docker", "inspect", *names]:
                told = json.dumps([self._inspected(o) for o in self.containers if o.name in names])
            case ["docker", "stop", *_, name]:
                self._named(name).running = False
                told = ""
            case ["docker", "rm", name]:
                self.containers.remove(self._named(name))
                told = ""
            case ["docker", "logs", *_]:
                told = "it has no configuration\n"
            case ["docker", "exec", "-i", name, *_]:
                answer = [200, '{"queue": "forebay-canary", "id": "1", "durability": "replicated"}']
                told = json.dumps([202, answer[1]] if json.loads(stdin)["method"] == "POST" else answer)
                if self._named(name).code:
                    return subprocess.CompletedProcess(command, 1, b"", b"is not running")
            case _:
                told = ""
        return subprocess.CompletedProcess(command, 0, told.encode(), b"")

    def _up(self, service: str, number: int, image: str) -> None:
        for one in self.of(service)[:number]:
            one.running = True
        for _ in range(number - len(self.of(service))):
            used = {one.address for one in self.containers}
            address = next(a for n in range(2, 99) if (a := f"10.0.0.{n}") not in used)
            names = {one.name for one in self.containers}
            name = next(a for n in range(1, 99) if (a := f"{service}-{n}") not in names)
            code = 1 if image in self.broken else 0
            self.containers.append(Container(service, name, image, address, code=code, restarts=code))

    def _nginx(self, script: str, arguments: list[str]) -> str:
        if "hold" in script:
            self.held = True
        if "proven" in script:
            self.proven = arguments
        ready = [o.address for o in self.of("gateway") if o.running and not o.code]
        known = [*self._inside, *self.proven]
        self._inside = [a for a in ready if a in known or not self.held]
        return "".join(f"server {address}:8080 max_fails=0;\n" for address in self._inside)

    def _named(self, name: str) -> Container:
        return next(one for one in self.containers if one.name == name)

    @staticmethod
    def _inspected(one: Container) -> dict[str, Any]:
        return {
            "Name": f"/{one.name}",
            "Config": {"Image": one.image},
            "RestartCount": one.restarts,
            "State": {"Running": one.running, "ExitCode": one.code},
            "NetworkSettings": {"Networks": {"default": {"IPAddress": one.address if one.running else ""}}},
        }


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    stack = Docker()
    monkeypatch.setattr(Containers, "_try", lambda _, *given, **named: stack(*given, **named))
    return stack


@pytest.fixture
def config(tmp_path: Path) -> Config:
    checks = Checks(start_timeout=5.0, settle=0.0)
    return Config(kind="compose", directory=tmp_path, checks=checks, compose=Compose(project=tmp_path))


@pytest.fixture
def roll(docker: Docker, config: Config) -> Roll:
    roll = Roll(config, Containers(config), Store(config.directory))
    roll.roll("1")
    return roll


def images(docker: Docker) -> set[str]:
    return {one.image for one in docker.containers}


@pytest.mark.parametrize("surge", [0, 1])
def test_a_container_that_failed_is_not_started_in_the_place_of_another(
    docker: Docker, roll: Roll, surge: int
) -> None:
    docker.broken.add("forebay:2")

    with pytest.raises(CheckFailed, match="all instances run 1 again") as failure:
        roll.roll("2", surge=surge)

    assert images(docker) == {"forebay:1"}
    log = Path(str(failure.value).partition("by Docker; ")[2].partition(" says why")[0])
    assert log.read_text() == "it has no configuration\n"


def test_a_container_that_somebody_left_stopped_is_not_started_again(docker: Docker, roll: Roll) -> None:
    docker.containers.append(Container("gateway", "gateway-9", "forebay:0", "10.0.0.99", running=False))

    roll.roll("2")

    assert images(docker) == {"forebay:2"}


@pytest.mark.usefixtures("roll")
def test_a_newcomer_with_the_address_of_one_that_was_proven_is_held_out(
    docker: Docker, config: Config
) -> None:
    gone = docker.of("gateway")[0]
    docker.containers.remove(gone)

    newcomer = Containers(config).start("gateway", "2")

    assert newcomer.address.startswith(gone.address)
    assert newcomer.address not in [one.address for one in Containers(config).rotation()]


@pytest.mark.usefixtures("roll")
def test_one_that_was_started_again_long_ago_is_sound(docker: Docker, config: Config) -> None:
    docker.of("consumer")[0].restarts = 3

    Roll(config, Containers(config), Store(config.directory)).smoke()
