"""The idempotency memory keeps its promises in every order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.idempotency import IdempotencyMemory, Known, Verdict, fingerprint

IDS = st.sampled_from("abcd")
DIGESTS = st.sampled_from([1, -2])
CAPACITY = 2


class MemoryMachine(RuleBasedStateMachine):
    """
    Compares the memory with a model: claims in flight, and accepted ids from the
    least to the most recently used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: IdempotencyMemory[int] = IdempotencyMemory(CAPACITY)
        self.claims: dict[str, tuple[int, list[int]]] = {}
        self.known: list[tuple[str, int]] = []
        self.waiter = 0

    @rule(message_id=IDS, digest=DIGESTS)
    def claim(self, message_id: str, digest: int) -> None:
        self.waiter += 1
        verdict = self.memory.claim(message_id, digest, self.waiter)
        known = next((k for k in self.known if k[0] == message_id), None)
        if known is not None:
            self.known.remove(known)
            self.known.append(known)
            assert verdict == (Known("synced") if known[1] == digest else Verdict.CONFLICT)
        elif message_id not in self.claims:
            assert verdict is Verdict.NEW
            self.claims[message_id] = (digest, [])
        elif self.claims[message_id][0] == digest:
            assert verdict is Verdict.TWIN
            self.claims[message_id][1].append(self.waiter)
        else:
            assert verdict is Verdict.CONFLICT

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.claims)))
        digest, twins = self.claims.pop(message_id)
        assert self.memory.confirm(message_id, "synced") == twins
        self.known = [*self.known, (message_id, digest)][-CAPACITY:]

    @rule(claims=st.dictionaries(IDS, DIGESTS, min_size=1))
    def claim_all(self, claims: dict[str, int]) -> None:
        known = {message_id for message_id, _ in self.known}
        all_new = claims.keys().isdisjoint(self.claims) and claims.keys().isdisjoint(known)
        assert self.memory.claim_all(list(claims), list(claims.values())) is all_new
        if all_new:
            self.claims |= {message_id: (digest, []) for message_id, digest in claims.items()}

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def confirm_all(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.claims)), unique=True, min_size=1))
        none_has_twins = not any(self.claims[message_id][1] for message_id in ids)
        assert self.memory.confirm_all(ids, "synced") is none_has_twins
        if none_has_twins:
            self.known += [(message_id, self.claims.pop(message_id)[0]) for message_id in ids]
            self.known = self.known[-CAPACITY:]

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.claims)))
        _, twins = self.claims.pop(message_id)
        assert self.memory.release(message_id) == twins

    @invariant()
    def never_more_than_its_capacity(self) -> None:
        assert len(self.memory) == len(self.known) <= CAPACITY


MemoryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestIdempotencyMemory = MemoryMachine.TestCase


def test_a_released_claim_does_not_stop_its_retry() -> None:
    memory: IdempotencyMemory[int] = IdempotencyMemory(10)
    memory.claim("a", 1, 0)
    memory.release("a")

    assert memory.claim("a", 1, 1) is Verdict.NEW


def test_without_capacity_twins_still_share_one_publish() -> None:
    memory: IdempotencyMemory[int] = IdempotencyMemory(0)
    memory.claim("a", 1, 0)

    assert memory.claim("a", 1, 1) is Verdict.TWIN
    assert memory.confirm("a", "synced") == [1]
    assert memory.claim("a", 1, 2) is Verdict.NEW


def test_body_content_type_and_ordering_key_make_the_fingerprint() -> None:
    prints = {
        fingerprint(b"x", "text/plain", None),
        fingerprint(b"y", "text/plain", None),
        fingerprint(b"x", "text/html", None),
        fingerprint(b"x", "text/plain", "k"),
        fingerprint(b"x", "text/plain", ""),
    }

    assert len(prints) == 5
