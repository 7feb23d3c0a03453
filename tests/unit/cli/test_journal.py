"""`forebay journal` on real files, and the exit code of a gateway that leaves one behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import orjson
import pytest
import structlog

from forebay.brokers.factory import open_broker, open_journal
from forebay.brokers.settings import BrokerSettings
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.cli.main import run
from forebay.journal.files import JournalFile, claim_own
from forebay.journal.looking import records
from forebay.testing.broker_contract.harness import message

OPENER = partial(
    open_journal, settings=BrokerSettings(sqlite=SQLiteSettings(min_free_bytes=0)), max_body_bytes=900_000
)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    monkeypatch.setenv("FOREBAY_GATEWAY__JOURNAL", str(directory))
    monkeypatch.setenv("FOREBAY_BROKER__URL", f"sqlite:///{tmp_path / 'queue.db'}")
    monkeypatch.setenv("FOREBAY_QUEUE_NAMES", "orders")
    return directory


def fill(file: JournalFile, bodies: Sequence[bytes]) -> None:
    async def filled() -> None:
        async with OPENER(file.path) as broker:
            await broker.declare("orders")
            for body in bodies:
                [result] = await broker.publish("orders", [message(body)], timeout=10)
                assert result.ok

    with structlog.testing.capture_logs():
        asyncio.run(filled())


def arrived(path: Path) -> list[bytes]:
    async def taken() -> list[bytes]:
        settings = BrokerSettings.model_validate({"url": f"sqlite:///{path}"})
        async with open_broker(settings) as broker, broker.subscribe("orders", prefetch=100) as subscription:
            return [d.message.body for d in await subscription.receive(100, 1.0)]

    return asyncio.run(taken())


def test_status_tells_what_waits_and_whether_somebody_is_there_for_it(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = claim_own(journal)
    fill(claim.file, [b"1", b"22"])
    fill(JournalFile(journal, 2), [b"3"])
    assert run(["journal", "status", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    claim.release()

    assert (first["owned"], first["messages"], first["bytes"]) == (True, 2, 3)
    assert (second["owned"], second["queues"]) == (False, {"orders": 1})
    assert first["oldest_age"] is not None


def test_without_a_journal_it_says_what_to_set(
    journal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FOREBAY_GATEWAY__JOURNAL")
    assert run(["journal", "status"]) == 2
    assert "gateway.journal" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "check", "drain", "export"])
def test_a_directory_that_is_not_there_is_a_slip_and_not_an_empty_journal(
    command: str, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["journal", command, "--directory", f"{journal}s"]) == 4
    assert f"there is no directory {journal}s" in capsys.readouterr().err


def test_drain_publishes_what_nobody_drains_in_order(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(JournalFile(journal, 1), [b"%d" % n for n in range(30)])
    assert run(["journal", "drain", "--dry-run", "--json"]) == 0
    assert run(["journal", "drain", "--json"]) == 0
    planned, done = map(orjson.loads, capsys.readouterr().out.splitlines())
    assert (planned["left"], done) == (30, {"published": 30, "set_aside": 0, "left": 0})
    assert arrived(tmp_path / "queue.db") == [b"%d" % n for n in range(30)]


def test_export_writes_every_byte_and_takes_nothing(
    journal: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    fill(JournalFile(journal, 1), [b"text", b"\xff\x00"])
    for _ in range(2):
        assert run(["journal", "export"]) == 0
        first, second = map(orjson.loads, capsysbinary.readouterr().out.splitlines())
        assert (first["queue"], first["body"], second["body_base64"]) == ("orders", "text", "/wA=")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_check_repairs_what_can_be_read_of_a_truncated_file(
    journal: Path, cut: float, capsys: pytest.CaptureFixture[str]
) -> None:
    file = JournalFile(journal, 1)
    fill(file, [b"%d " % n * 500 for n in range(100)])
    before = file.path.stat().st_size
    with file.path.open("r+b") as opened:
        opened.truncate(int(before * cut))

    assert run(["journal", "check", "--dry-run", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "damaged"
    code = run(["journal", "check", "--json"])
    [found] = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "repaired"
    assert code == (8 if found["unreadable"] or found["unplaced"] else 0)
    assert Path(found["damaged_file"]).stat().st_size == int(before * cut)
    assert found["rescued"] > 100 * cut * 0.5
    assert run(["journal", "check"]) == 0
    assert run(["journal", "status", "--json"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)[0]["messages"] == found["rescued"]


def test_what_is_no_database_any_more_is_set_aside(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    JournalFile(journal, 1).path.write_bytes(b"these are not the bytes of a queue" * 100)
    assert run(["journal", "check", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["rescued"]) == ("repaired", 0)
    assert Path(found["damaged_file"]).exists()


def test_verify_counts_what_waits_in_a_journal(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREBAY_DATABASE__URL", f"sqlite:///{tmp_path / 'forebay.db'}")
    assert run(["migrate"]) == 0
    fill(JournalFile(journal, 1), [b"1"])
    [record] = records(JournalFile(journal, 1).path)
    line = f"{record['id']} {hashlib.sha256(b'1').hexdigest()} orders\n"
    (tmp_path / "sent.txt").write_text(line)

    async def empty_queue() -> None:
        settings = BrokerSettings.model_validate({"url": f"sqlite:///{tmp_path / 'queue.db'}"})
        async with open_broker(settings) as broker:
            await broker.declare("orders")

    asyncio.run(empty_queue())
    capsys.readouterr()
    run(["verify", str(tmp_path / "sent.txt"), "--json"])
    ledger = json.loads(capsys.readouterr().out)
    assert (ledger["lost"], ledger["waiting"]) == (0, 1)


def test_doctor_tells_of_a_journal_that_nobody_drains(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(JournalFile(journal, 1), [b"1"])
    JournalFile(journal, 2).path.write_bytes(b"no database at all" * 1000)
    run(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    found = [(f["verdict"], f["text"], f["fix"]) for f in document["findings"] if f["check"] == "journal"]

    assert found[0][:2] == ("warn", "journal-1.db: 1 messages, and its gateway is gone")
    assert (found[1][0], found[1][2]) == ("fail", "forebay journal check")
