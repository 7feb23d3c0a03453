"""Several hosts, one after the other, by SSH; each does by itself what `remote` lets the key ask for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from forebay_rolling.errors import CheckFailed, RollbackFailed, UsageError

# A name that begins with a dash would be an option to ssh.
_HOST = re.compile(
    r"(?:([a-z_][a-z0-9_-]*)@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?"
)

CONNECT_TIMEOUT = 15
ALIVE = 15
"""Seconds between two signs of life; three that fail end a connection."""

Run = Callable[[list[str]], int]


def _run(command: list[str]) -> int:
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


class Hosts:
    """`ssh` never asks: neither for a password, nor whether a host is to be trusted."""

    def __init__(
        self, hosts: Sequence[str], *, identity: Path | None, known_hosts: Path | None, run: Run = _run
    ) -> None:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise UsageError(f"{host!r} is no host; write USER@HOST or USER@HOST:PORT")
        self._hosts = hosts
        self._run = run
        self._options = [
            "-T", "-x", "-a",
            "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=yes",
            "-o", f"ConnectTimeout={CONNECT_TIMEOUT}",
            "-o", f"ServerAliveInterval={ALIVE}",
        ]  # fmt: skip
        if identity is not None:
            self._options += ["-i", str(identity), "-o", "IdentitiesOnly=yes"]
        if known_hosts is not None:
            self._options += ["-o", f"UserKnownHostsFile={known_hosts}"]

    def roll(self, version: str) -> None:
        """
        Roll host after host; at the first that fails, those before it go back.

        Raises:
            UsageError: the first host has no such version, or the like; nothing was touched.
            CheckFailed: all hosts run what they ran before.
            RollbackFailed: not all do.
        """
        done: list[str] = []
        for host in self._hosts:
            code = self._on(host, f"to {version}")
            if code == 0:
                done.append(host)
                continue
            if code == UsageError.code and not done:
                raise UsageError(f"{host} refused; nothing was touched")
            stuck = [other for other in reversed(done) if self._on(other, "rollback") != 0]
            if code not in (CheckFailed.code, UsageError.code):
                # It says so itself, or the connection broke off and nobody knows.
                stuck.append(host)
            if stuck:
                raise RollbackFailed(
                    f"{host} failed (exit code {code}), and it is not sure that {', '.join(stuck)} went back;"
                    " `roll --host ... status` shows what runs; say `rollback` to those of them alone that"
                    " did not, since others it may take further back"
                )
            raise CheckFailed(f"{host} failed; all hosts run what they ran before")

    def each(self, verb: str) -> None:
        """
        Ask all hosts.

        Raises:
            CheckFailed: naming those that failed.
        """
        failed = [host for host in self._hosts if self._on(host, verb) != 0]
        if failed:
            raise CheckFailed(f"`{verb}` failed on {', '.join(failed)}")

    def _on(self, host: str, command: str) -> int:
        match = _HOST.fullmatch(host)
        assert match is not None
        user, name, port = match.groups()
        print(f"{host}: {command}", file=sys.stderr, flush=True)
        return self._run(
            [
                "ssh", *self._options,
                *(["-l", user] if user else []), *(["-p", port] if port else []),
                "--", name.strip("[]"), command,
            ]
        )  # fmt: skip
