"""The ledger adds up for every history, and tells lost, doubled and altered from all that is fine."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.ids import conflict_id
from forebay.ledger import Accountant, Ledger, Place, Recorder, Sent, read_record, shared_ids


@dataclass(frozen=True)
class Found:
    id: str
    where: str
    digest: str
    attempts: int | None = None
    destination: str = ""


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def uid(n: int) -> str:
    return str(uuid.UUID(int=n))


def sent(n: int, body: bytes = b"body", queue: str = "q") -> Sent:
    return Sent(uid(n), sha(body), queue)


def accounted(messages: Sequence[Sent], places: dict[str, list[Place]], *, held: int | None = 0) -> Ledger:
    """As `verify` does it: conflict ids are only looked at when they are asked for."""
    accountant = Accountant(shared_ids(messages), held=held)
    asked = {m.id for m in messages} | set(accountant.elsewhere(messages, places))
    accountant.add(messages, {id: found for id, found in places.items() if id in asked})
    return accountant.ledger


def total(ledger: Ledger) -> int:
    return (
        ledger.stored
        + ledger.done
        + ledger.dead
        + ledger.discarded
        + len(ledger.altered)
        + ledger.waiting
        + ledger.lost
    )


# What may become of one message, as the rows it leaves, and the figure it must be counted under.
FATES: dict[str, tuple[list[str], str]] = {
    "stored": (["stored"], "stored"),
    "handled": (["done"], "done"),
    "dead": (["dead"], "dead"),
    "given up": (["discarded"], "discarded"),
    "given up by two destinations": (["dead", "dead"], "dead"),
    "given up by two, one let go": (["dead", "discarded"], "dead"),
    "on its way": ([], "missing"),
    "stored, and still dead": (["stored", "dead"], "stored"),
    "stored and handled": (["stored", "done"], "stored"),
    "handled under two names": (["done", "done"], "done"),
}
DOUBLED = {"stored, and still dead", "stored and handled", "handled under two names"}


@given(st.lists(st.sampled_from(sorted(FATES)), max_size=40), st.integers(0, 10))
def test_every_message_is_counted_once_where_it_is(fates: list[str], held: int) -> None:
    messages = [sent(n, b"%d" % n) for n in range(len(fates))]
    places: dict[str, list[Place]] = {
        m.id: [Found(m.id, where, m.digest, destination=str(n)) for n, where in enumerate(FATES[fate][0])]
        for m, fate in zip(messages, fates, strict=True)
    }

    ledger = accounted(messages, places, held=held)

    figures = [FATES[fate][1] for fate in fates]
    for name in ("stored", "done", "dead", "discarded"):
        assert getattr(ledger, name) == figures.count(name)
    assert len(ledger.missing) == figures.count("missing")
    assert ledger.waiting == min(held, figures.count("missing"))
    assert ledger.lost == max(0, figures.count("missing") - held)
    assert [m.id for m in ledger.duplicated] == [
        m.id for m, fate in zip(messages, fates, strict=True) if fate in DOUBLED
    ]
    assert total(ledger) == ledger.recorded == len(fates)


@given(
    bodies=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=4, unique=True),
    settled=st.lists(st.booleans(), min_size=4, max_size=4),
    winner=st.integers(0, 3),
    held=st.integers(0, 4),
)
def test_bodies_that_share_an_id_are_each_accounted_for(
    bodies: list[bytes], settled: list[bool], winner: int, held: int
) -> None:
    """One key, several bodies: whichever came first is stored, the others rest as conflicts, in any order."""
    messages = [sent(1, body) for body in bodies]
    first = bodies[winner % len(bodies)]
    places: dict[str, list[Place]] = {uid(1): [Found(uid(1), "stored", sha(first))]}
    conflicts = 0
    for body, is_settled in zip(bodies, settled, strict=False):
        if body != first and is_settled:
            letter = Found(conflict_id(uid(1), body), "dead", sha(body))
            places[letter.id] = [letter]
            # The dead letters remember the id they were sent with, and are found by it too.
            places[uid(1)].append(letter)
            conflicts += 1

    ledger = accounted(messages, places, held=held)

    assert (ledger.stored, ledger.dead, ledger.conflicts) == (1, conflicts, conflicts)
    assert len(ledger.missing) == len(bodies) - 1 - conflicts
    assert not ledger.altered
    assert not ledger.duplicated
    assert total(ledger) == len(bodies)


def test_other_bytes_under_a_recorded_id_are_altered() -> None:
    ledger = accounted([sent(1)], {uid(1): [Found(uid(1), "stored", sha(b"other"))]})

    assert ledger.altered == [sent(1)]
    assert not ledger.adds_up


def test_other_bytes_are_no_alteration_while_ours_may_still_become_a_conflict() -> None:
    ledger = accounted([sent(1)], {uid(1): [Found(uid(1), "stored", sha(b"other"))]}, held=1)

    assert (ledger.altered, ledger.waiting) == ([], 1)


def test_a_body_that_lost_against_an_unrecorded_one_is_found_among_the_dead_letters() -> None:
    """The other sender kept no record; ours was answered 202 all the same."""
    places: dict[str, list[Place]] = {
        uid(1): [Found(uid(1), "stored", sha(b"other"))],
        sent(1).conflict_id: [Found(sent(1).conflict_id, "dead", sha(b"body"))],
    }
    ledger = accounted([sent(1)], places)

    assert (ledger.dead, ledger.conflicts, ledger.adds_up) == (1, 1, True)


def test_a_conflict_that_was_sent_back_is_stored_under_its_own_conflict_id() -> None:
    ledger = accounted(
        [sent(1, b"a"), sent(1, b"b")],
        {
            uid(1): [Found(uid(1), "stored", sha(b"a"))],
            conflict_id(uid(1), b"b"): [Found(conflict_id(uid(1), b"b"), "stored", sha(b"b"))],
        },
    )
    assert (ledger.stored, ledger.conflicts, ledger.adds_up, ledger.missing) == (2, 1, True, [])


def test_a_body_stored_under_its_own_id_and_under_a_conflict_id_is_doubled() -> None:
    messages = [sent(1, b"a"), sent(1, b"b")]
    places: dict[str, list[Place]] = {
        uid(1): [Found(uid(1), "stored", sha(b"a"))],
        conflict_id(uid(1), b"a"): [Found(conflict_id(uid(1), b"a"), "stored", sha(b"a"))],
        conflict_id(uid(1), b"b"): [Found(conflict_id(uid(1), b"b"), "dead", sha(b"b"))],
    }
    assert accounted(messages, places).duplicated == [messages[0]]


def test_a_queue_that_cannot_tell_its_depth_makes_missing_messages_waiting() -> None:
    ledger = accounted([sent(1)], {}, held=None)

    assert (ledger.waiting, ledger.lost) == (1, 0)
    assert ledger.missing


def test_attempts_are_counted_over_the_stored_rows() -> None:
    places: dict[str, list[Place]] = {uid(n): [Found(uid(n), "stored", sha(b"body"), n)] for n in (1, 2)}
    places[uid(3)] = [Found(uid(3), "dead", sha(b"body"), 12)]

    assert accounted([sent(1), sent(2), sent(3)], places).attempts == {1: 1, 2: 1}


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([b"a", b"b"]), st.sampled_from(["q", "r"])), max_size=60
    )
)
def test_a_record_says_each_message_once(entries: list[tuple[int, bytes, str]]) -> None:
    messages = [sent(n, body, queue) for n, body, queue in entries]
    lines = [f"{m.id} {m.digest} {m.queue}\n".encode() for m in messages]

    record = read_record(lines)

    assert record.sent == list(dict.fromkeys(messages))
    assert record.lines == len(messages)
    assert record.queues == sorted({m.queue for m in messages})


@given(cut=st.integers(1, 110))
def test_a_torn_line_hides_nothing_but_itself(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A sender died in the middle of a line, another one went on in the same file."""
    path = tmp_path_factory.mktemp("record") / "sent.txt"
    record(path, [sent(1)])
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b"1 ", b"2 ")[: min(cut, len(whole) - 1)])
    record(path, [sent(3)])

    with path.open("rb") as lines:
        found = read_record(lines)

    assert {m.id for m in found.sent} >= {uid(1), uid(3)}
    assert len(found.sent) + len(found.unreadable) == 3


def record(path: Path, messages: Iterable[Sent]) -> None:
    recorder = Recorder(path)
    for message in messages:
        recorder.add(message.id, message.digest, message.queue)
    recorder.close()
