"""
The ledger: what was accepted against where it is now. It must always add up.

A record has one line per accepted message: its id, the SHA-256 of its body, its
queue. The `Accountant` compares it with what the database and the queues hold. Nothing
here does any I/O but reading and writing the record's lines.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from forebay.ids import conflict_id_from_digest

_LINE = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) ([0-9a-f]{64}) ([^\s]+)\n?")


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that was answered 202. Equal when sent again with the same id and bytes."""

    id: str
    digest: str
    """SHA-256 of the body, in hexadecimal."""
    queue: str

    @property
    def conflict_id(self) -> str:
        """The id under which it rests among the dead letters, if another body came first under its id."""
        return conflict_id_from_digest(self.id, bytes.fromhex(self.digest))


class Recorder:
    """
    Appends to a record, one write to the system per line.

    The line is with the system when `add` returns, so killing the sender loses only
    the lines of messages that were in flight. A power cut may lose more: the record
    is not synced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if _torn(path):
            # A sender died in the middle of a line; ours must not become its end.
            os.write(self._fd, b"\n")

    def add(self, id: str, digest: str, queue: str) -> None:
        """
        Raises:
            OSError: the line is not in the record, though its message was accepted.
        """
        line = f"{id} {digest} {queue}\n".encode()
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise self._failed(error.errno or errno.EIO) from error
        if written != len(line):
            raise self._failed(errno.ENOSPC)

    def _failed(self, number: int) -> OSError:
        why = f"the record cannot be written, though the message was accepted: {os.strerror(number)}"
        return OSError(number, why, str(self._path))

    def close(self) -> None:
        os.close(self._fd)


def _torn(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


@dataclass(slots=True)
class Record:
    """What a record file says."""

    sent: list[Sent] = field(default_factory=list)
    """Each id and digest once, in the order of their first lines."""
    lines: int = 0
    """Readable lines, those that repeat an earlier one included."""
    unreadable: list[int] = field(default_factory=list)
    """Numbers of the lines that are none: a sender killed in the middle of one leaves it torn."""

    queues: list[str] = field(default_factory=list)
    shared: dict[str, set[str]] = field(default_factory=dict)
    """See `shared_ids`."""


def read_record(lines: Iterable[bytes]) -> Record:
    record = Record()
    seen: set[Sent] = set()
    queues: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            if line.strip():
                record.unreadable.append(number)
            continue
        record.lines += 1
        id, digest, queue = match.groups()
        sent = Sent(id.decode(), digest.decode(), queues.setdefault(queue, queue.decode("utf-8", "replace")))
        if sent not in seen:
            seen.add(sent)
            record.sent.append(sent)
    record.queues = sorted(queues.values())
    record.shared = shared_ids(record.sent)
    return record


def shared_ids(sent: Iterable[Sent]) -> dict[str, set[str]]:
    """The ids under which several bodies were recorded, with the digests of these."""
    first: dict[str, str] = {}
    shared: dict[str, set[str]] = {}
    for message in sent:
        if first.setdefault(message.id, message.digest) != message.digest:
            shared.setdefault(message.id, {first[message.id]}).add(message.digest)
    return shared


class Place(Protocol):
    """Where one copy of a message was found; `forebay.storage.queries.StoredDigest` is one."""

    @property
    def id(self) -> str:
        """The id it has there, which for a conflict's dead letter is not the one it was sent with."""
        ...

    @property
    def where(self) -> str:
        """stored, done, dead or discarded."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of its body, in hexadecimal."""
        ...

    @property
    def attempts(self) -> int | None:
        """Counted tries, where the place keeps them."""
        ...


@dataclass(slots=True)
class Ledger:
    """
    The figures of `forebay verify`.

    stored + done + dead + discarded + altered + missing = recorded, always, and
    missing = waiting + lost. A message is counted once, at its best place in that order.
    """

    recorded: int = 0
    """Different messages: pairs of id and digest."""
    stored: int = 0
    """In the `messages` table under their id, with exactly the bytes that were sent."""
    done: int = 0
    """Handled: the once-only record of a handler has their id."""
    dead: int = 0
    """Given up, among the dead letters in the database."""
    discarded: int = 0
    """Given up, and let go by an operator."""
    conflicts: int = 0
    """Among the above: rest under another id, because theirs was already taken by another body."""
    altered: list[Sent] = field(default_factory=list)
    """Their id is there, but only with bytes that nobody recorded for it."""
    duplicated: list[Sent] = field(default_factory=list)
    """Counted above, and there once too often: see `Accountant`."""
    missing: list[Sent] = field(default_factory=list)
    """Nowhere in the database."""
    attempts: dict[int, int] = field(default_factory=dict)
    """How many stored rows needed how many attempts. An outage costs none: all under 1."""
    held: int | None = 0
    """What the queues and their dead-letter queues hold, ours or not; None: they cannot tell."""

    @property
    def waiting(self) -> int:
        """An estimate: the missing that the queues have room for. Messages of others wait there too."""
        return len(self.missing) if self.held is None else min(len(self.missing), self.held)

    @property
    def lost(self) -> int:
        """The missing beyond all that the queues hold: these are nowhere."""
        return len(self.missing) - self.waiting

    @property
    def adds_up(self) -> bool:
        """Every figure is as it should be; what is missing may still be on its way."""
        return not (self.lost or self.altered or self.duplicated)


class Accountant:
    """
    Compares what was accepted with where it is, batch by batch.

    `held` must have been taken before the database is asked: a message leaves a queue
    only after it reached the database, so it is then in one of the two at least.

    The tables' primary keys forbid two rows of one id in one table, so a message is
    doubled when it had its effect at two places: stored under its own id and once more
    under a conflict id, stored and handled, handled under two destinations, or stored
    and open among the dead letters, from where a redrive would send it once more.
    """

    def __init__(self, shared: Mapping[str, Set[str]], *, held: int | None) -> None:
        """`shared` is the whole record's `shared_ids`; `held` see `Ledger`."""
        self.ledger = Ledger(held=held)
        self._shared = shared

    def elsewhere(self, batch: Iterable[Sent], places: Mapping[str, Sequence[Place]]) -> list[str]:
        """The conflict ids worth asking for, once the places of the batch's own ids are known."""
        return [m.conflict_id for m in batch if self._may_have_moved(m, places)]

    def _may_have_moved(self, message: Sent, places: Mapping[str, Sequence[Place]]) -> bool:
        if message.id in self._shared:
            return True
        return not any(p.id == message.id and p.digest == message.digest for p in places.get(message.id, ()))

    def add(self, batch: Iterable[Sent], places: Mapping[str, Sequence[Place]]) -> None:
        """Count a batch. `places` has what was found for its ids and for those of `elsewhere`."""
        for message in batch:
            found = list(places.get(message.id, ()))
            if self._may_have_moved(message, places):
                found += places.get(message.conflict_id, ())
            self._count(message, found)

    def _count(self, message: Sent, places: Sequence[Place]) -> None:
        ledger = self.ledger
        ledger.recorded += 1
        copies = [p for p in places if p.digest == message.digest]
        if copies:
            best = min(copies, key=lambda p: _ORDER[p.where])
            match best.where:
                case "stored":
                    ledger.stored += 1
                case "done":
                    ledger.done += 1
                case "dead":
                    ledger.dead += 1
                case _:
                    ledger.discarded += 1
            ledger.conflicts += all(p.id != message.id for p in copies)
            effects = sum(p.where in ("stored", "done") for p in copies)
            if effects > 1 or (effects == 1 and any(p.where == "dead" for p in copies)):
                ledger.duplicated.append(message)
            if best.where == "stored" and best.attempts is not None:
                ledger.attempts[best.attempts] = ledger.attempts.get(best.attempts, 0) + 1
        elif self._is_altered(message, places):
            ledger.altered.append(message)
        else:
            ledger.missing.append(message)

    def _is_altered(self, message: Sent, places: Sequence[Place]) -> bool:
        if self.ledger.held:
            # Ours may be on its way still, to become the dead letter of a conflict.
            return False
        recorded = self._shared.get(message.id, ())
        return any(p.id == message.id and p.digest not in recorded for p in places)


_ORDER = {"stored": 0, "done": 1, "dead": 2, "discarded": 3}
