"""
Containers of a docker compose stack, behind its nginx with `watch-upstream`.

Who leaves rotation is decided by the watcher, when a gateway that was told to stop is no longer ready;
who enters it by us: newcomers are held out until they are proven (the file `hold`, which we touch
again and again, and which counts for a minute if we die).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay_rolling import checks
from forebay_rolling.config import Config, Role
from forebay_rolling.errors import CheckFailed, UsageError
from forebay_rolling.rolling import Instance

PORT = 8080
"""Where gateways and consumers listen in their containers."""
HOLD_AGAIN = 15.0
"""Seconds after which the hold is renewed."""
ENTERS = 30.0
"""Seconds within which the watcher has let a proven gateway in, or one that stopped out."""
PAUSE = 0.5
JOURNAL_LEFT = 9
LAST_LINES = "1000"
"""So much of what a container said is kept when it is removed."""

# Asked from within: a container's address need not be reached from where we run.
_ASK = """
import http.client, json, sys
asked = json.load(sys.stdin)
headers = asked["headers"]
if asked["key_file"]:
    headers["Authorization"] = "Bearer " + open(asked["key_file"]).read().strip()
connection = http.client.HTTPConnection("127.0.0.1", asked["port"], timeout=asked["timeout"])
connection.request(asked["method"], asked["path"], asked["body"], headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read(65536).decode("utf-8", "replace")]))
"""


class Containers:
    """One compose project."""

    def __init__(self, config: Config) -> None:
        assert config.compose is not None
        self._config = config
        self._settings = config.compose
        self._held_at = float("-inf")
        self._started: set[str] = set()
        """By us, in this roll: none of them may have been started a second time."""

    def check_version(self, version: str) -> None:
        image = self._image(version)
        if self._try([self._settings.docker, "image", "inspect", image]).returncode == 0:
            return
        pulled = self._try([self._settings.docker, "pull", "--quiet", image], timeout=1_800)
        if pulled.returncode != 0:
            raise UsageError(f"there is no image {image}: {_last(pulled.stderr)}")

    def migrate(self, version: str) -> None:
        self._compose("run", "--rm", "--no-deps", "-T", "migrate", version=version)

    def instances(self, role: Role) -> list[Instance]:
        names = self._compose("ps", "--quiet", role).split()
        if not names:
            return []
        found = []
        for one in json.loads(self._docker("inspect", *names)):
            networks = one["NetworkSettings"]["Networks"].values()
            address = next((n["IPAddress"] for n in networks if n["IPAddress"]), "")
            if one["State"]["Running"]:
                name = one["Name"].lstrip("/")
                found.append(Instance(role, name, self._version(one["Config"]["Image"]), f"{address}:{PORT}"))
        return sorted(found, key=lambda i: i.name)

    def start(self, role: Role, version: str) -> Instance:
        if role == "gateway":
            # Before the hold: a newcomer may get the address of one that was proven once, and is gone.
            self._let_in([address.rpartition(":")[0] for address in self._inside()])
            self._hold()
        # Or `up` would start one of these, of whatever version, instead of making a new one.
        self._compose("rm", "--force", role)
        before = {one.name for one in self.instances(role)}
        self._compose(
            "up", "--detach", "--no-deps", "--no-recreate", "--scale", f"{role}={len(before) + 1}", role,
            version=version,
        )  # fmt: skip
        new = [one for one in self.instances(role) if one.name not in before]
        if len(new) != 1:
            raise CheckFailed(f"`docker compose up` started {len(new)} {role}s instead of one")
        self._started.add(new[0].name)
        return new[0]

    def prove(self, instance: Instance) -> None:
        canary = instance.role == "gateway" and bool(self._config.checks.canary_queue)
        first = self._inspect(instance)
        # One that has run for long may well have been started again once.
        restarts = 0 if first is None or instance.name in self._started else first["RestartCount"]

        def ended() -> str | None:
            if instance.role == "gateway" and time.monotonic() - self._held_at > HOLD_AGAIN:
                self._hold()
            state = self._inspect(instance)
            if state is None:
                return "is gone"
            if state["RestartCount"] > restarts:
                return f"ended, and was started again by Docker; {self._log(instance)} says why"
            if not state["State"]["Running"]:
                return f"ended with exit code {state['State']['ExitCode']}; {self._log(instance)} says why"
            return None

        checks.prove(instance, self._ask(instance), self._config.checks, ended, take_canary=canary)

    def alive(self, instance: Instance) -> bool:
        state = self._inspect(instance)
        return state is not None and bool(state["State"]["Running"])

    def ready(self, instance: Instance) -> bool:
        return checks.ready(self._ask(instance)) is None

    def stop(self, instance: Instance) -> None:
        if self._inspect(instance) is None:
            return
        limit = self._config.checks.stop_timeout
        self._docker("stop", "--time", f"{limit:.0f}", instance.name, timeout=limit + 60)
        state = self._inspect(instance)
        code = state["State"]["ExitCode"] if state else 0
        others = instance.role == "gateway" and [o for o in self._inside() if o != instance.address]
        deadline = time.monotonic() + ENTERS
        while others and instance.address in self._inside() and time.monotonic() < deadline:
            time.sleep(PAUSE)
        # Left there, the next `up --scale` would count it, and start it again.
        log = self._log(instance)
        self._docker("rm", instance.name)
        # The journal is the volume of all gateways: the others adopt what it left, or the next one does.
        if code not in (0, JOURNAL_LEFT):
            raise CheckFailed(f"{instance} stopped with exit code {code}; {log} says why")

    def settle(self) -> None:
        """Nothing: the watcher lives on when a deployer is killed."""

    def rotation(self) -> list[Instance]:
        running = {one.address: one for one in self.instances("gateway")}
        return [running[address] for address in self._inside() if address in running]

    def rotate(self, instances: list[Instance]) -> None:
        proven = [one.address.rpartition(":")[0] for one in instances]
        self._let_in(proven)
        deadline = time.monotonic() + ENTERS
        while missing := {one.address for one in instances} - set(self._inside()):
            if time.monotonic() > deadline:
                raise CheckFailed(f"nginx has not taken {', '.join(sorted(missing))} within {ENTERS:g} s")
            time.sleep(PAUSE)

    # ---- within

    def _hold(self) -> None:
        self._in_nginx('touch "$0/hold"')
        self._held_at = time.monotonic()

    def _let_in(self, addresses: list[str]) -> None:
        self._in_nginx('printf "%s\\n" "$@" >"$0/proven.new" && mv "$0/proven.new" "$0/proven"', *addresses)

    def _log(self, instance: Instance) -> Path:
        """What it said last, kept where it outlives the container."""
        done = self._try([self._settings.docker, "logs", "--tail", LAST_LINES, instance.name])
        folder = self._config.directory / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{instance.name}.log"
        file.write_bytes(done.stdout + done.stderr)
        return file

    def _inside(self) -> list[str]:
        text = self._in_nginx('cat "$0/gateways.conf"')
        return re.findall(r"^server ([^\s;]+) max_fails", text, re.MULTILINE)

    def _in_nginx(self, script: str, *arguments: str) -> str:
        return self._compose("exec", "-T", "nginx", "sh", "-c", script, self._settings.upstream, *arguments)

    def _ask(self, instance: Instance) -> checks.Ask:
        key_file = self._config.checks.canary_key_file

        def ask(
            method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
        ) -> tuple[int, bytes]:
            asked = {
                "method": method, "path": path, "body": None if body is None else body.decode(),
                "headers": headers or {}, "port": PORT, "timeout": checks.ASK_TIMEOUT,
                "key_file": str(key_file) if key_file is not None and method == "POST" else None,
            }  # fmt: skip
            command = [self._settings.docker, "exec", "-i", instance.name, "python", "-c", _ASK]
            done = self._try(command, stdin=json.dumps(asked).encode())
            if done.returncode != 0:
                raise http.client.HTTPException(_last(done.stderr))
            status, text = json.loads(done.stdout)
            return status, text.encode()

        return ask

    def _image(self, version: str) -> str:
        # What ran before the first roll may be another image; its name is its version then.
        return version if ":" in version else self._settings.image.replace("{version}", version)

    def _version(self, image: str) -> str:
        before, _, after = self._settings.image.partition("{version}")
        if image.startswith(before) and image.endswith(after):
            return image[len(before) : len(image) - len(after)]
        return image

    def _inspect(self, instance: Instance) -> dict[str, Any] | None:
        done = self._try([self._settings.docker, "inspect", instance.name])
        found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
        return found[0] if found else None

    def _compose(self, *arguments: str, version: str | None = None) -> str:
        more = {} if version is None else {self._settings.variable: self._image(version)}
        return self._must([*self._settings.command, *arguments], more)

    def _docker(self, *arguments: str, timeout: float = 600) -> str:
        return self._must([self._settings.docker, *arguments], {}, timeout=timeout)

    def _must(self, command: Sequence[str], more: Mapping[str, str], *, timeout: float = 600) -> str:
        done = self._try(command, more, timeout=timeout)
        if done.returncode != 0:
            raise CheckFailed(f"`{' '.join(command[:6])}` failed: {_last(done.stderr)}")
        return done.stdout.decode()

    def _try(
        self,
        command: Sequence[str],
        more: Mapping[str, str] | None = None,
        *,
        stdin: bytes = b"",
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                command, env={**os.environ, **(more or {})}, cwd=self._settings.project,
                input=stdin, capture_output=True, timeout=timeout, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckFailed(f"`{' '.join(command[:4])}` failed: {error}") from error


def _last(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
