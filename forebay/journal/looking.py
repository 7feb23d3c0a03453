"""What is in a journal's directory, for those who only look."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.brokers.factory import rescue
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.journal.files import JournalFile, journal_files
from forebay.journal.journal import Journal, Opener
from forebay.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One file, as it is now."""

    file: JournalFile
    owned: bool
    """A living gateway has it, and drains it."""
    messages: int | None = None
    bytes: int | None = None
    """Of bodies."""
    oldest_age: float | None = None
    set_aside: int | None = None
    """Messages that the broker refused for good."""
    queues: dict[str, int] | None = None
    trouble: str = ""
    """Why the others are not known."""

    def as_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file.path),
            "owned": self.owned,
            "messages": self.messages,
            "bytes": self.bytes,
            "oldest_age": self.oldest_age,
            "set_aside": self.set_aside,
            "queues": self.queues,
            "trouble": self.trouble or None,
        }


async def look(file: JournalFile, opener: Opener) -> Status:
    owned = file.owned()
    try:
        async with opener(file.path) as broker:
            journal = await Journal.of(broker, name=file.name, max_bytes=0, max_age=0.0)
    except (BrokerUnavailable, SettingsError) as error:
        return Status(file=file, owned=owned, trouble=str(error))
    return Status(
        file=file,
        owned=owned,
        messages=journal.messages,
        bytes=journal.size,
        oldest_age=journal.oldest_age,
        set_aside=journal.set_aside,
        queues={queue: journal.holds(queue) for queue in journal.queues},
    )


async def waiting(directory: Path, opener: Opener, queues: Collection[str]) -> int:
    """Messages of these queues in all journals of the directory, as far as they can be read."""
    found = [await look(file, opener) for file in journal_files(directory)]
    return sum(count for one in found for queue, count in (one.queues or {}).items() if queue in queues)


async def left_alone(directory: Path, opener: Opener) -> int:
    """Messages in journals that nobody drains now; 0 if a living gateway shares the directory."""
    files = journal_files(directory)
    if any(file.owned() for file in files):
        return 0
    found = [await look(file, opener) for file in files]
    # What cannot be opened holds something, or it would not matter.
    return sum(1 if status.messages is None else status.messages for status in found)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """
    What can be read of a file, sound or not, a document for each message: its exact body either way.

    The messages that were set aside are among them, with the queue `<name>.dead`.
    """
    for queue, message in rescue(path).messages():
        yield _record(queue, message)


def _record(queue: str, m: Message) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": m.id,
        "queue": queue,
        "ordering_key": m.key,
        "content_type": m.content_type,
        "headers": dict(m.headers),
        "accepted_at": m.accepted_at.isoformat(),
        "not_before": m.not_before.isoformat() if m.not_before else None,
        "expires_at": m.expires_at.isoformat() if m.expires_at else None,
    }
    try:
        document["body"] = m.body.decode()
    except UnicodeDecodeError:
        document["body_base64"] = base64.b64encode(m.body).decode()
    return document
