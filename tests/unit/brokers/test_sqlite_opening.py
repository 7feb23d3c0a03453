"""Opening the queue file: what is refused and how it is said, what is checked, who may read it."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from forebay.brokers.sqlite import opening, schema
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.testing.broker_contract.harness import drain, ids, message, messages, publish
from tests.unit.brokers.test_sqlite_processes import line, process

SETTINGS = SQLiteSettings(ballast_bytes=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "queue.db"


async def open_and_close(path: Path, *, create: bool = True) -> None:
    async with SQLiteBroker.open(path, SETTINGS, create=create) as broker:
        await broker.declare("orders")


def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"my thesis, the only copy. " * 200)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=r"queue\.db is not a queue file"):
        asyncio.run(open_and_close(path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "nothing is put beside a file that is not ours"


async def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with apsw.Connection(str(path)) as db:
        db.execute("create table users (name text)")
    db.close()
    with pytest.raises(SettingsError, match="not a queue of ours"):
        await open_and_close(path)
    assert list(path.parent.iterdir()) == [path]


async def test_a_file_of_a_newer_release_says_upgrade(path: Path) -> None:
    await open_and_close(path)
    db = apsw.Connection(str(path))
    db.pragma("user_version", schema.VERSION + 1)
    db.close()
    with pytest.raises(BrokerUnavailable, match="upgrade this process"):
        await open_and_close(path)


async def test_a_directory_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="whose directory this user may write"):
        await open_and_close(tmp_path / "file" / "queue.db")


async def test_a_directory_as_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="cannot open the queue file"):
        await open_and_close(tmp_path)


def test_the_file_of_another_user_is_a_wrong_setting() -> None:
    # Not tmp_path: nobody else gets into that.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        path = Path(folder) / "queue.db"
        path.touch(mode=0o000)
        with unprivileged(), pytest.raises(SettingsError, match="this user may not read and write"):
            schema.open_file(path, create=False)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may open everything, so for a while it is somebody else."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


async def test_reading_commands_make_nothing(path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="there is no queue at"):
        await open_and_close(path, create=False)
    assert not path.parent.exists()


async def test_files_are_for_their_owner_only(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=1):
            found = list(path.parent.rglob("*"))
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in found if not p.is_socket()}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for p, mode in modes.items():
        assert mode == (0o700 if p.is_dir() else 0o600), p


async def test_an_old_library_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(BrokerUnavailable, match=r"SQLite 3\.51\.2 can corrupt"):
        await open_and_close(path)


@pytest.mark.system
async def test_after_a_crash_of_the_last_user_the_file_is_checked_and_after_a_clean_stop_not(
    path: Path,
) -> None:
    await open_and_close(path)
    with capture_logs() as logs:
        await open_and_close(path)
    assert not [e for e in logs if "checking" in e["event"]]

    with process("hold", path) as holder:
        line(holder)
        with capture_logs() as logs:
            await open_and_close(path)
        assert not [e for e in logs if "checking" in e["event"]], "another process has it open"
        holder.kill()
        holder.wait()
    leftovers = [p.name for p in path.with_name("queue.db.run").rglob("*") if "." in p.name]
    assert len(leftovers) == 4, "two turns, the lock and the socket of the killed process"
    with capture_logs() as logs:
        await open_and_close(path)
    left = sorted(p.name for p in path.with_name("queue.db.run").rglob("*") if "." in p.name)
    assert left == ["turn.main", "turn.next"]
    assert [e["event"] for e in logs if "sound" in e["event"]] == ["the queue file is sound"]
    with capture_logs() as logs:
        await open_and_close(path)
    assert not [e for e in logs if "checking" in e["event"]]


async def test_a_damaged_file_says_so_and_how_to_rescue_it(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"x" * 20_000) for _ in range(20)])
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(10 * 4096))
    (path.parent / "queue.db.run" / "unclean").touch()
    with pytest.raises(BrokerUnavailable, match=r"is damaged .*\.recover"):
        await open_and_close(path)


async def test_a_copy_made_after_close_is_complete(path: Path, tmp_path: Path) -> None:
    """After the last close everything is in the one file: no log is left to forget."""
    sent = messages(100)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", sent)
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    async with SQLiteBroker.open(copy, SETTINGS) as broker:
        assert ids(await drain(broker, "orders", 100, 1.0)) == ids(sent)


@pytest.mark.system
async def test_a_stopped_process_in_the_door_does_not_hang_an_opening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "OPEN_TIMEOUT", 0.2)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        assert broker._files.enter_door(0)
        with pytest.raises(BrokerUnavailable, match="another process has been opening"):
            await open_and_close(path)
        broker._files.leave_door()


async def test_several_may_open_and_close_at_once(path: Path) -> None:
    await asyncio.gather(*(open_and_close(path) for _ in range(8)))
    assert not (path.parent / "queue.db.run" / "unclean").exists()


async def test_who_waits_at_the_door_is_no_leftover(path: Path) -> None:
    """Its mark must outlive the tidying of the one before it, or its crash is noticed only by lease."""
    await open_and_close(path)
    first = SideFiles(path, ballast_bytes=0, min_free_bytes=0)
    assert first.enter_door(1.0)
    opened = asyncio.Event()

    async def second() -> None:
        async with SQLiteBroker.open(path, SETTINGS) as broker:
            opened.set()
            marks = [f.name for f in first.directory.glob("process.*")]
            assert f"process.{broker._files.process}" in marks

    waiting = asyncio.create_task(second())
    await asyncio.sleep(0.3)  # it tries the door meanwhile; later would be no failure
    assert not opened.is_set()
    assert first.alone()
    first.remove_leftovers()
    first.close()
    await waiting
