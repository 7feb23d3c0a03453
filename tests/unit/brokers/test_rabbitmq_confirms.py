"""Publisher confirms are counted right, without a server."""

from __future__ import annotations

import random

import pytest

from forebay.brokers.rabbitmq.confirms import Batch, Confirms
from forebay.errors import PublishError, PublishRejected, PublishUnconfirmed, QueueFull


class Sent:
    """A batch of messages a, b, c … sent with ten bytes each."""

    def __init__(self, ids: str, confirms: Confirms | None = None) -> None:
        self.rooms = 0
        self.confirms = confirms or Confirms(self._room)
        self.batch = Batch(list(ids), "synced")
        for index in range(len(ids)):
            self.confirms.sent(self.batch, index, [10], "", "orders")

    def _room(self) -> None:
        self.rooms += 1

    @property
    def errors(self) -> list[PublishError | str | None]:
        return [None if r is None else r.error or "stored" for r in self.batch.results]


async def test_one_answer_for_all_up_to_a_tag() -> None:
    sent = Sent("abc")
    sent.confirms.answered(2, multiple=True, taken=True)
    assert sent.errors == ["stored", "stored", None]
    assert (sent.confirms.count, sent.confirms.bytes) == (1, 10)
    assert not sent.batch.done.done()
    sent.confirms.answered(3, multiple=False, taken=True)
    assert sent.batch.done.done()


async def test_answers_out_of_order() -> None:
    sent = Sent("abc")
    sent.confirms.answered(2, multiple=False, taken=True)
    sent.confirms.answered(3, multiple=True, taken=True)
    assert sent.errors == ["stored"] * 3
    assert (sent.confirms.count, sent.confirms.bytes) == (0, 0)


async def test_tag_zero_means_all() -> None:
    sent = Sent("abc")
    sent.confirms.answered(0, multiple=True, taken=True)
    assert sent.errors == ["stored"] * 3


async def test_a_refusal_is_certain() -> None:
    sent = Sent("ab")
    sent.confirms.answered(1, multiple=False, taken=False)
    sent.confirms.answered(2, multiple=False, taken=True)
    assert isinstance(sent.errors[0], QueueFull)
    assert sent.errors[1] == "stored"


async def test_an_answer_to_an_unknown_tag_changes_nothing() -> None:
    sent = Sent("a")
    sent.confirms.answered(7, multiple=False, taken=True)
    assert sent.errors == [None]


async def test_a_returned_message_is_not_stored_though_it_is_acknowledged() -> None:
    sent = Sent("abc")
    sent.confirms.returned("b", "", "orders")
    sent.confirms.answered(3, multiple=True, taken=True)
    assert sent.errors[0] == sent.errors[2] == "stored"
    assert isinstance(sent.errors[1], PublishRejected)


async def test_the_same_id_sent_twice_and_returned_once() -> None:
    confirms = Confirms(lambda: None)
    one, two = Sent("a", confirms), Sent("a", confirms)
    confirms.returned("a", "", "orders")
    confirms.answered(2, multiple=True, taken=True)
    assert isinstance(one.errors[0], PublishRejected)
    assert two.errors == ["stored"]


async def test_a_return_is_matched_by_queue_too() -> None:
    confirms = Confirms(lambda: None)
    sent = Sent("a", confirms)
    confirms.returned("a", "", "invoices")
    confirms.answered(1, multiple=False, taken=True)
    assert sent.errors == ["stored"]


async def test_everything_open_is_unconfirmed_when_the_channel_is_lost() -> None:
    sent = Sent("abc")
    sent.confirms.answered(1, multiple=False, taken=True)
    sent.confirms.lost("reset by peer")
    assert sent.errors[0] == "stored"
    assert all(isinstance(e, PublishUnconfirmed) and "reset by peer" in str(e) for e in sent.errors[1:])
    assert sent.confirms.count == 0
    assert sent.rooms


async def test_what_was_given_up_stays_so_and_its_room_is_free_only_after_the_answer() -> None:
    sent = Sent("a")
    sent.batch.expire("no answer within 1 s")
    assert sent.confirms.count == 1
    sent.confirms.answered(1, multiple=False, taken=True)
    assert isinstance(sent.errors[0], PublishUnconfirmed)
    assert sent.confirms.count == 0


class Plain:
    """The same by counting single tags, as slowly as can be."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[Batch, int, int]] = {}
        self.outcomes: dict[tuple[int, int], str] = {}

    def sent(self, batch: Batch, start: int, sizes: list[int], tag: int) -> None:
        self.open |= {tag + i: (batch, start + i, size) for i, size in enumerate(sizes)}

    def answered(self, tag: int, multiple: bool, taken: bool) -> None:
        for t in [t for t in self.open if t == tag or (multiple and (tag == 0 or t < tag))]:
            batch, index, _ = self.open.pop(t)
            self.outcomes.setdefault((id(batch), index), "stored" if taken else "refused")


def _word(batch: Batch, index: int) -> str | None:
    result = batch.results[index]
    if result is None:
        return None
    if result.ok:
        assert result.message_id in ("", batch.ids[index])
        return "stored"
    return "unconfirmed" if isinstance(result.error, PublishUnconfirmed) else "refused"


@pytest.mark.parametrize("seed", range(60))
async def test_answers_in_any_order_settle_what_they_are_for(seed: int) -> None:
    rng = random.Random(seed)
    confirms, plain = Confirms(lambda: None), Plain()
    batches: list[Batch] = []
    tag = 0
    for _ in range(120):
        if rng.random() < 0.4:
            size = rng.choice([1, 2, 5, 20])
            batch = Batch([f"{len(batches)}-{i}" for i in range(size)], "synced")
            batches.append(batch)
            start = 0
            while start < size:
                sizes = [rng.randrange(100) for _ in range(rng.randint(1, size - start))]
                confirms.sent(batch, start, sizes, "", "orders")
                plain.sent(batch, start, sizes, tag + 1)
                start, tag = start + len(sizes), tag + len(sizes)
        elif tag:
            answer = rng.choice([0, tag + 3, rng.randint(1, tag), rng.randint(max(1, tag - 9), tag)])
            multiple, taken = rng.random() < 0.4 and (answer > 0 or rng.random() < 0.2), rng.random() < 0.8
            confirms.answered(answer, multiple=multiple, taken=taken)
            plain.answered(answer, multiple, taken)
        assert confirms.count == len(plain.open)
        assert confirms.bytes == sum(size for _, _, size in plain.open.values())
    for batch in batches:
        words = [_word(batch, i) for i in range(len(batch.ids))]
        assert words == [plain.outcomes.get((id(batch), i)) for i in range(len(batch.ids))]
        assert batch.open == words.count(None)
        assert batch.done.done() == (batch.open == 0)


@pytest.mark.parametrize("taken", [True, False])
async def test_an_answer_makes_room(taken: bool) -> None:
    sent = Sent("a")
    sent.confirms.answered(1, multiple=False, taken=taken)
    assert sent.rooms == 1
