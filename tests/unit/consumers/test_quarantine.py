"""What a dead process had in hand is found by the others, once; and one can be alone with a suspect."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from consumers.quarantine import Quarantine
from consumers.recorder import Recorder, folder_for
from forebay.brokers.api import Delivery
from forebay.storage.suspects import Suspect
from tests.unit.consumers.fakes import messages

DIES = """
import os, signal, sys
from pathlib import Path
from consumers.recorder import Recorder
slot = Recorder(Path(sys.argv[1])).slot()
idle = slot.__class__(slot._recorder, slot._path.with_name(slot._path.name.replace("-0.", "-1.")))
with idle.holding("clicks", ["z"], alone=False):
    pass
with slot.holding("orders", sys.argv[2].split(","), alone=sys.argv[3] == "alone"):
    print("holding", flush=True)
    if sys.argv[4] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def process(folder: Path, ids: str, *, alone: bool = False, dies: bool = True) -> subprocess.Popen[str]:
    words = ["alone" if alone else "beside", "dies" if dies else "lives"]
    started = subprocess.Popen(
        [sys.executable, "-c", DIES, str(folder), ids, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "holding\n"
    if dies:
        assert started.wait(10) == -signal.SIGKILL
    return started


def end(started: subprocess.Popen[str]) -> None:
    started.communicate()


def delivery(id: str, queue: str = "orders") -> Delivery:
    (message,) = messages(1)
    message.id = id
    return Delivery(message=message, queue=queue, attempt=1, receipt=None)


def test_what_a_killed_process_had_in_hand_is_found_once(tmp_path: Path) -> None:
    end(process(tmp_path, "a,b", alone=True))
    one, two = Recorder(tmp_path), Recorder(tmp_path)
    (left,) = one.left_by_the_dead()
    assert (left.queue, left.ids, left.alone) == ("orders", ("a", "b"), True)

    (same,) = two.left_by_the_dead()
    assert [one.forget(left), two.forget(same)] == [True, False]
    assert one.left_by_the_dead() == []


def test_what_a_living_process_has_in_hand_is_its_own_business(tmp_path: Path) -> None:
    living = process(tmp_path, "a", dies=False)
    try:
        assert Recorder(tmp_path).left_by_the_dead() == []
    finally:
        end(living)


def test_a_process_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    slot = recorder.slot()
    with slot.holding("orders", ["a"], alone=False):
        assert len(list(tmp_path.iterdir())) == 1
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_half_a_note_accuses_nobody(tmp_path: Path) -> None:
    (tmp_path / "1-x-0.held").write_bytes(b"\0\0\0\0\0\0\0\x20{")
    assert Recorder(tmp_path).left_by_the_dead() == []


def test_a_folder_that_cannot_be_used_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with structlog.testing.capture_logs() as logs:
        recorder = Recorder(tmp_path / "file" / "folder")
    with recorder.slot().holding("orders", ["a"], alone=False):
        pass
    assert recorder.left_by_the_dead() == []
    assert "consumer.state_dir" in logs[0]["event"]


def test_installations_do_not_meet(tmp_path: Path) -> None:
    assert folder_for(tmp_path, "kafka a") != folder_for(tmp_path, "kafka b")
    assert folder_for(None, "kafka a") == folder_for(None, "kafka a")


def test_only_what_was_in_hand_is_suspect(tmp_path: Path) -> None:
    end(process(tmp_path, "a,b"))
    quarantine = Quarantine(Recorder(tmp_path), limit=2)
    quarantine.search()

    beyond, suspects = quarantine.divide([delivery(i) for i in "abc"] + [delivery("a", "clicks")])

    assert [d.message.id for d in suspects] == ["a", "b"]
    assert [(d.queue, d.message.id) for d in beyond] == [("orders", "c"), ("clicks", "a")]
    assert quarantine.failure(suspects[0], "database") is None


def test_what_survives_is_forgotten_here_and_in_the_database(tmp_path: Path) -> None:
    end(process(tmp_path, "a,b"))
    quarantine = Quarantine(Recorder(tmp_path), limit=2)
    quarantine.search()
    quarantine.learn({("orders", "b"): Suspect(crashes=1), ("orders", "c"): Suspect(crashes=1)})
    for id in "abc":
        quarantine.survived(delivery(id))

    assert quarantine.divide([delivery(i) for i in "abc"])[1] == []
    quarantine.learn({("orders", "b"): Suspect(crashes=1)})
    assert quarantine.suspects == [], "the database had not been told when it was asked"
    assert quarantine.take_acquitted() == {("orders", i) for i in "abc"}
    assert [left.ids for left in quarantine.take_unpublished()] == [()]


def test_a_suspect_that_killed_two_in_solitude_is_given_up(tmp_path: Path) -> None:
    end(process(tmp_path, "a", alone=True))
    quarantine = Quarantine(Recorder(tmp_path), limit=2)
    quarantine.learn({("orders", "a"): Suspect(crashes=2, alone=1)})
    assert quarantine.failure(delivery("a"), "database") is None
    quarantine.search()
    failure = quarantine.failure(delivery("a"), "database")
    assert failure is not None
    assert (failure.error_class, failure.destination) == ("crashed", "database")


async def test_alone_is_alone() -> None:
    quarantine = Quarantine(Recorder(None), limit=2)
    inside: list[str] = []
    most = 0

    async def work(name: str, alone: bool) -> None:
        nonlocal most
        for _ in range(20):
            async with quarantine.alone() if alone else quarantine.beside_others():
                inside.append(name)
                most = max(most, len(inside))
                assert not alone or inside == [name]
                await asyncio.sleep(0)
                assert not alone or inside == [name]
                inside.remove(name)
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for n in range(4):
            group.create_task(work(f"w{n}", alone=False))
        for n in range(2):
            group.create_task(work(f"s{n}", alone=True))
    assert most > 1


async def test_who_is_cancelled_while_waiting_to_be_alone_holds_nobody_up() -> None:
    quarantine = Quarantine(Recorder(None), limit=2)

    async def alone() -> None:
        async with quarantine.alone():
            pytest.fail("somebody is working")

    async with quarantine.beside_others():
        waiting = asyncio.create_task(alone())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        async with asyncio.timeout(1), quarantine.beside_others():
            pass


def test_a_child_of_a_process_does_not_keep_its_files_from_being_found(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from consumers.recorder import Recorder\n"
        "context = Recorder(Path(sys.argv[1])).slot().holding('orders', ['a'], alone=False)\n"
        "context.__enter__()\n"
        "if os.fork(): os._exit(1)\n"
        "print('child', os.getpid(), flush=True); sys.stdin.read(); os._exit(0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("child")
    parent.wait(10)
    try:
        (left,) = Recorder(tmp_path).left_by_the_dead()
        assert left.ids == ("a",)
    finally:
        parent.communicate()
