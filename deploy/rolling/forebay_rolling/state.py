"""What outlives a deployer: which version should run, whether a roll is under way, the lock and the log."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from forebay_rolling.errors import Busy, UsageError


@dataclass(slots=True, kw_only=True)
class State:
    """Which versions are meant."""

    current: str | None = None
    """The version that runs, or that a failed roll goes back to."""
    previous: str | None = None
    """The one before it: what `rollback` goes back to."""
    rolling: str | None = None
    """The version of a roll that has not ended; after a deployer was killed, too."""
    proving: str | None = None
    """The instance that was started and is not proven yet."""


class Store:
    """The state of one installation, in a file that is replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "state.json"
        self._lock = directory / "deployer.lock"
        self._log = directory / "roll.log"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {directory}: {error.strerror}") from error

    def read(self) -> State:
        if not self._file.exists():
            return State()
        return State(**json.loads(self._file.read_text()))

    def write(self, state: State) -> None:
        replace(self._file, json.dumps(asdict(state)))

    def say(self, text: str) -> None:
        """A line for the operator, on stderr and with its time in roll.log."""
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            pass  # the connection that we were asked through is gone; the work goes on
        try:
            with self._log.open("a") as log:
                log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {text}\n")
        except OSError:
            pass  # a full disk must not keep us from going back

    @contextmanager
    def alone(self) -> Iterator[None]:
        """
        Keep other deployers out; the lock falls with this process, however that ends.

        Raises:
            Busy: one is at work.
        """
        with self._lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "unknown"
                raise Busy(f"another deployer is at work here (pid {who}); wait for its end") from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader, and a crash, finds the old text or the new one."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
