"""Plain processes on this host, behind an nginx of this host."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from forebay_rolling import checks
from forebay_rolling.config import Config, Role
from forebay_rolling.errors import CheckFailed, UsageError
from forebay_rolling.nginx import Rotation
from forebay_rolling.rolling import Instance
from forebay_rolling.state import Store

JOURNAL_LEFT = 9
"""Exit code of a gateway that leaves messages in its journal and no other gateway to adopt them."""
ADOPTED = 60.0
"""Seconds within which the gateways that are left have adopted a journal; they wait 10 s before they do."""
PAUSE = 0.05

_HERE = Path(__file__).resolve().parents[1]
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME")


class Processes:
    """
    Each instance has a folder below `instances/`, a keeper process, and a port that is its own.

    A folder whose `alive` nobody has locked is of an instance that has ended.
    """

    def __init__(self, config: Config, store: Store) -> None:
        assert config.nginx is not None
        self._config = config
        self._store = store
        self._rotation = Rotation(config.nginx)
        self._folder = config.directory / "instances"
        self._logs = config.directory / "logs"
        for folder in (self._folder, self._logs):
            folder.mkdir(mode=0o700, exist_ok=True)

    def check_version(self, version: str) -> None:
        program = Path(self._command(version)[0])
        if not os.access(program, os.X_OK):
            raise UsageError(f"there is no version {version} on this host: {program} cannot be run")

    def migrate(self, version: str) -> None:
        self._run(version, "migrate", what="forebay migrate")

    def instances(self, role: Role) -> list[Instance]:
        found = []
        for folder in sorted(self._folder.glob(f"{role}-*")):
            if _alive(folder):
                described = _read(folder / "instance.json")
                found.append(Instance(role, folder.name, described["version"], described["address"]))
        return found

    def start(self, role: Role, version: str) -> Instance:
        for folder in self._folder.iterdir():
            if not _alive(folder):
                shutil.rmtree(folder)
        used = {one.address for one in self.instances(role)} | set(self._rotation.addresses())
        for port in self._config.ports(role):
            address = f"127.0.0.1:{port}"
            if address not in used:
                break
        else:
            raise CheckFailed(f"no port of {role}_ports is free")
        # The suffix tells it from an earlier one of that port.
        name = f"{role}-{port}-{secrets.token_hex(3)}"
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        verb = ["gateway"] if role == "gateway" else ["consume"]
        described = {
            "version": version,
            "address": address,
            "command": [*self._command(version), *verb, "--host", "127.0.0.1", "--port", str(port)],
            "environment": self._environment(),
            "working_directory": str(self._config.working_directory or self._config.directory),
        }
        (folder / "instance.json").write_text(json.dumps(described))
        (folder / "instance.json").chmod(0o600)
        with (folder / "alive").open("w") as alive, (self._logs / f"{role}-{port}.log").open("ab") as log:
            # Taken here and inherited: there is no moment at which the keeper runs without it.
            fcntl.flock(alive, fcntl.LOCK_EX)
            subprocess.Popen(
                [sys.executable, "-Es", "-m", "forebay_rolling.keeper", str(folder)],
                cwd=_HERE, env=self._environment() | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, pass_fds=[alive.fileno()],
            )  # fmt: skip
        return Instance(role, name, version, address)

    def prove(self, instance: Instance) -> None:
        first = self._starts(instance)
        canary = instance.role == "gateway" and bool(self._config.checks.canary_queue)
        checks.prove(
            instance,
            self._ask(instance),
            self._config.checks,
            lambda: self._ended(instance, max(first, 1)),
            take_canary=canary,
        )

    def alive(self, instance: Instance) -> bool:
        return _alive(self._folder / instance.name)

    def ready(self, instance: Instance) -> bool:
        return checks.ready(self._ask(instance)) is None

    def stop(self, instance: Instance) -> None:
        folder = self._folder / instance.name
        if not _alive(folder):
            return
        deadline = time.monotonic() + self._config.checks.stop_timeout
        keeper: int | None = None
        while _alive(folder):
            if keeper is None:  # it tells its number as soon as it runs
                keeper = _read(folder / "running.json").get("keeper")
                _signal(keeper, signal.SIGTERM)
            if time.monotonic() > deadline:
                running = _read(folder / "running.json")
                # The keeper first, or it would start another.
                _signal(running.get("keeper"), signal.SIGKILL)
                _signal(running.get("pid"), signal.SIGKILL)
                raise CheckFailed(
                    f"{instance} did not stop within {self._config.checks.stop_timeout:g} s and was killed;"
                    f" {self._log(instance)} says what it did"
                )
            time.sleep(PAUSE)
        code = _read(folder / "running.json").get("code")
        if instance.role == "gateway" and self._config.journal and code in (0, JOURNAL_LEFT):
            self._until_adopted(instance)
            return
        if code != 0:
            raise CheckFailed(f"{instance} stopped with exit code {code}; {self._log(instance)} says why")

    def settle(self) -> None:
        self._rotation.settle()

    def rotation(self) -> list[Instance]:
        running = {one.address: one for one in self.instances("gateway")}
        return [
            running.get(address, Instance("gateway", f"gateway at {address}", "not running", address))
            for address in self._rotation.addresses()
        ]

    def rotate(self, instances: list[Instance]) -> None:
        self._rotation.change([one.address for one in instances])

    # ---- within

    def _ask(self, instance: Instance) -> checks.Ask:
        return checks.by_address(instance.address, self._config.checks.canary_key_file)

    def _command(self, version: str) -> list[str]:
        return [part.replace("{version}", version) for part in self._config.command]

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | self._config.environment

    def _run(self, version: str, *arguments: str, what: str) -> bytes:
        try:
            done = subprocess.run(
                [*self._command(version), *arguments],
                env=self._environment(), cwd=self._config.working_directory or self._config.directory,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckFailed(f"`{what}` of {version} failed: {error}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise CheckFailed(f"`{what}` of {version} ended with {done.returncode}: {said[-1]}")
        return done.stdout

    def _until_adopted(self, instance: Instance) -> None:
        """Wait until no journal is without a gateway; with none left, the next one to start adopts it."""
        deadline = time.monotonic() + ADOPTED
        while self.instances("gateway"):
            found = json.loads(
                self._run(instance.version, "journal", "status", "--json", what="journal status")
            )
            left = sum(one["messages"] or 0 for one in found if not one["owned"])
            if not left:
                return
            if time.monotonic() > deadline:
                raise CheckFailed(
                    f"{left} messages are left in a journal that no gateway has adopted within {ADOPTED:g} s;"
                    " `forebay journal status` shows them"
                )
            time.sleep(1.0)

    def _starts(self, instance: Instance) -> int:
        return int(_read(self._folder / instance.name / "running.json").get("starts", 0))

    def _ended(self, instance: Instance, starts: int) -> str | None:
        running = _read(self._folder / instance.name / "running.json")
        if running.get("code") is not None or running.get("starts", 0) > starts:
            return f"ended with exit code {running.get('code')}; {self._log(instance)} says why"
        return None if self.alive(instance) else f"is gone; {self._log(instance)} says why"

    def _log(self, instance: Instance) -> Path:
        port = instance.address.rpartition(":")[2]
        return self._logs / f"{instance.role}-{port}.log"


def _alive(folder: Path) -> bool:
    try:
        with (folder / "alive").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found


def _signal(pid: int | None, number: int) -> None:
    try:
        if pid is not None:
            os.kill(pid, number)
    except ProcessLookupError:
        pass
