"""A host in memory: instances that start, prove themselves, and fail where a test says so."""

from __future__ import annotations

import itertools

from forebay_rolling.config import Role
from forebay_rolling.errors import CheckFailed, UsageError
from forebay_rolling.rolling import Instance


class Killed(BaseException):
    """The deployer is gone, at this very point."""


class Host:
    """Does at once what it is told, and keeps the least number of gateways that ever were in rotation."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        """Versions that do not prove themselves."""
        self.broken_in_rotation: set[str] = set()
        """Versions that are no longer ready once they are in rotation."""
        self.kill_at: int | None = None
        """The number of the step that the deployer does not survive."""
        self.steps = 0
        self.least: int | None = None
        self.most_running = 0
        self.migrated: list[str] = []
        self.running: dict[str, Instance] = {}
        self.inside: list[Instance] = []
        self.dead: set[str] = set()
        self.proven: set[str] = set()
        self._numbers = itertools.count(1)

    def versions(self, role: Role) -> list[str]:
        serving = self.inside if role == "gateway" else self.instances(role)
        return sorted(one.version for one in serving)

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.kill_at:
            raise Killed

    def check_version(self, version: str) -> None:
        if version == "missing":
            raise UsageError("there is no version missing on this host")

    def migrate(self, version: str) -> None:
        self._step()
        self.migrated.append(version)

    def instances(self, role: Role) -> list[Instance]:
        return [one for one in self.running.values() if one.role == role]

    def start(self, role: Role, version: str) -> Instance:
        self._step()
        number = next(self._numbers)
        instance = Instance(role, f"{role}-{number}", version, f"127.0.0.1:{8000 + number}")
        self.running[instance.name] = instance
        self.most_running = max(self.most_running, len(self.instances("gateway")))
        return instance

    def prove(self, instance: Instance) -> None:
        self._step()
        if instance.version in self.broken:
            raise CheckFailed(f"{instance} was not ready within 60 s")
        self.proven.add(instance.name)

    def alive(self, instance: Instance) -> bool:
        return instance.name in self.running and instance.name not in self.dead

    def ready(self, instance: Instance) -> bool:
        return self.alive(instance) and instance.version not in self.broken_in_rotation

    def stop(self, instance: Instance) -> None:
        assert instance not in self.inside, "it is stopped while requests are sent to it"
        self._step()
        self.running.pop(instance.name, None)

    def settle(self) -> None:
        """Nothing: what it is told is so at once."""

    def rotation(self) -> list[Instance]:
        return list(self.inside)

    def rotate(self, instances: list[Instance]) -> None:
        self._step()
        self.inside = list(instances)
        if self.least is not None:
            self.least = min(self.least, len(instances))

    def watch(self) -> None:
        """From now on remember the least."""
        self.least = len(self.inside)
