"""A repair that is broken off half-way: nothing that could be read stays behind."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay.brokers.api import Broker, PublishResult
from forebay.brokers.factory import open_journal as open_file
from forebay.brokers.settings import BrokerSettings
from forebay.brokers.sqlite.rescue import Rescue
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable
from forebay.journal.files import JournalFile, journal_files
from forebay.journal.journal import open_journal
from forebay.message import Message
from forebay.testing.broker_contract.harness import message

NO_LIMIT = BrokerSettings(sqlite=SQLiteSettings(min_free_bytes=0))


@asynccontextmanager
async def opener(path: Path) -> AsyncIterator[Broker]:
    async with open_file(path, NO_LIMIT, max_body_bytes=900_000) as broker:
        yield broker


class Killed(BaseException):
    """As if the process ended here."""


async def damaged(directory: Path) -> JournalFile:
    """A file of which the first half can be read: several hundred messages."""
    file = JournalFile(directory, 1)
    async with opener(file.path) as broker:
        await broker.declare("orders")
        messages = [message(b"%d " % n * 200) for n in range(1_000)]
        results = await broker.publish("orders", messages, timeout=60)
        assert all(r.ok for r in results)
    with file.path.open("r+b") as opened:
        opened.truncate(file.path.stat().st_size * 3 // 4)
    return file


async def opened(file: JournalFile, how: Any = opener) -> int:
    """The messages in it, once it is repaired."""
    claim = file.claim()
    assert claim is not None
    try:
        async with open_journal(claim, how, max_bytes=2**40, max_age=1e9) as journal:
            return journal.messages
    finally:
        claim.release()


@pytest.mark.parametrize("end", [BrokerUnavailable("the disk is full"), Killed()])
@pytest.mark.parametrize("after", [0, 2])
async def test_a_repair_that_ends_while_messages_are_written_is_done_again(
    tmp_path: Path, end: BaseException, after: int
) -> None:
    (tmp_path / "whole").mkdir()
    readable = await opened(await damaged(tmp_path / "whole"))
    assert readable > 500

    @asynccontextmanager
    async def failing(path: Path) -> AsyncIterator[Broker]:
        async with opener(path) as broker:
            inner, done = broker.publish, 0

            async def publish(queue: str, messages: Any, *, timeout: float) -> list[PublishResult]:
                nonlocal done
                if done == after:
                    raise end
                done += 1
                return await inner(queue, messages, timeout=timeout)

            broker.publish = publish  # type: ignore[method-assign]
            yield broker

    file = await damaged(tmp_path)
    for _ in range(2):
        with pytest.raises(type(end)):
            await opened(file, failing)
    assert await opened(file) == readable
    assert await opened(file) == readable
    assert len(list((tmp_path / "damaged").glob("*.db"))) == 1


async def test_a_damaged_file_is_read_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who adopts it may be serving."""
    read = Rescue.messages
    readers: set[int] = set()

    def messages(self: Rescue) -> Iterator[tuple[str, Message]]:
        for found in read(self):
            readers.add(threading.get_ident())
            yield found

    monkeypatch.setattr(Rescue, "messages", messages)
    assert await opened(await damaged(tmp_path)) > 500
    assert readers
    assert threading.get_ident() not in readers


async def test_a_repair_that_ends_between_file_and_log_keeps_them_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its log a file may look sound, and is older than it was."""
    file = await damaged(tmp_path)
    file.path.with_suffix(".db-wal").write_bytes(b"")
    rename = Path.rename

    def renamed(self: Path, target: Any) -> Path:
        if self == file.path:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(Killed):
        await opened(file)
    monkeypatch.undo()
    file.path.unlink()
    async with opener(file.path):
        pass  # sound by itself
    assert await opened(file) == 0
    assert len({part.name.partition(".")[0] for part in (tmp_path / "damaged").iterdir()}) == 1
    assert len(list((tmp_path / "damaged").glob("*.db"))) == 1


async def test_a_file_whose_repair_was_broken_off_is_among_the_journals(tmp_path: Path) -> None:
    file = JournalFile(tmp_path, 1)
    file.repairing.write_text("journal-1-20270101T000000.db")
    assert journal_files(tmp_path) == [file]
    assert await opened(file) == 0
    assert not file.repairing.exists()
