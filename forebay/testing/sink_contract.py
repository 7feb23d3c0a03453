"""
The contract that every sink keeps, as tests. Run it on yours:

    # tests/test_mysink_contract.py
    import pytest
    from forebay.testing.sink_contract import SinkContract, SinkHarness

    class MyHarness(SinkHarness):
        def open(self): ...
        async def stored(self, ids): ...

    class TestMySink(SinkContract):
        @pytest.fixture
        def harness(self) -> SinkHarness:
            return MyHarness()

It needs pytest and pytest-asyncio in auto mode (`pip install forebay[testing]`).
For readable failures add, before the import,
`pytest.register_assert_rewrite("forebay.testing.sink_contract")`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from consumers.processor import failure_of
from consumers.sinks import NotTried
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.ids import conflict_id, new_id
from forebay.message import Message
from forebay.sinks import Sink, WriteResult

BODIES = {
    "empty": b"",
    "binary": b"\x00\xff\xfe",
    "escaped NUL": b'{"a": "\\u0000"}',
    "NaN": b'{"a": NaN}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "deep": b"[" * 5_000,
    "large": b"x" * 500_000,
}


class SinkHarness(ABC):
    """How the suite reaches your sink and its destination. What it cannot do skips the tests that need it."""

    poison: bytes | None = None
    """A body that the destination refuses for ever; None if it takes everything."""

    takes: Literal["anything", "json objects"] = "anything"
    """
    Which bodies the destination takes at all. What is no JSON object must then be
    rejected without an effect; of objects that JSON's grammar allows and parsers
    differ about, such as lone surrogates, each may be taken or rejected.
    """

    strange: bytes | None = None
    """A body at which the destination fails in a way that says nothing certain; None if there is none."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Sink]:
        """One more sink to the same destination, as another process would have."""

    @abstractmethod
    async def stored(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """Id and body of each effect that messages with these ids had, in any order."""

    def outage(self) -> AbstractAsyncContextManager[None]:
        """While in this context the destination is down."""
        pytest.skip("this harness cannot take the destination down")

    def misconfigured(self) -> AbstractAsyncContextManager[None]:
        """While in this context the destination refuses everything until someone corrects something."""
        pytest.skip("this harness cannot misconfigure the destination")

    def busy(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """While in this context the destination refuses everything, and asks to be left alone so long."""
        pytest.skip("this destination does not say when to come again")


def delivery(body: bytes = b'{"n": 1}', **fields: Any) -> Delivery:
    message = Message(id=new_id(), body=body, accepted_at=datetime.now(UTC), content_type="application/json")
    return Delivery(message=replace(message, **fields), queue="contract", attempt=1, receipt=None)


def deliveries(count: int) -> list[Delivery]:
    return [delivery(f'{{"n": {n}}}'.encode()) for n in range(count)]


def outcomes(batch: Sequence[Delivery], results: Sequence[WriteResult]) -> list[str]:
    """ "new", "duplicate" or the error's class for each; asserts that results are aligned."""
    assert [r.message_id for r in results] == [d.message.id for d in batch], "results must be aligned"
    return [type(r.error).__name__ if r.error else "duplicate" if r.duplicate else "new" for r in results]


async def _write(sink: Sink, batch: Sequence[Delivery]) -> Sequence[WriteResult]:
    """Write it, and again if the destination says so: of two who deadlock, it takes one."""
    for _ in range(20):
        try:
            return await sink.write(batch)
        except SinkUnavailable as error:
            unavailable = error
    raise unavailable


async def assert_stored_once(
    harness: SinkHarness, batch: Sequence[Delivery], *, but: Sequence[Delivery] = ()
) -> None:
    """Each of `batch` had exactly one effect, with its own bytes; those of `but` had none."""
    found = await harness.stored([d.message.id for d in (*batch, *but)])
    assert sorted(found) == sorted((d.message.id, d.message.body) for d in batch)


class SinkContract:
    """Subclass it, and give it a `harness` fixture."""

    @pytest.fixture
    async def sink(self, harness: SinkHarness) -> AsyncIterator[Sink]:
        async with harness.open() as sink:
            yield sink

    async def test_a_batch_is_stored_with_one_result_each_in_order(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = deliveries(100)

        assert outcomes(batch, await sink.write(batch)) == ["new"] * 100
        await assert_stored_once(harness, batch)

    @pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
    async def test_any_bytes_arrive_as_they_are(self, sink: Sink, harness: SinkHarness, body: bytes) -> None:
        d = delivery(body)
        results = await sink.write([d])

        if harness.takes == "json objects" and isinstance(results[0].error, MessageRejected):
            assert not body.startswith(b"{") or body in (BODIES["NaN"], BODIES["lone surrogate"])
            await assert_stored_once(harness, [], but=[d])
            return
        assert harness.takes == "anything" or body.startswith(b"{")
        assert outcomes([d], results) == ["new"]
        await assert_stored_once(harness, [d])

    async def test_metadata_is_never_a_reason_to_refuse(self, sink: Sink, harness: SinkHarness) -> None:
        d = delivery(
            key="ключ \x00 \ud800",
            headers={"über": "\x00", "quote": "'; --", "empty": ""},
            content_type="text/plain; charset=\x00",
        )

        assert outcomes([d], await sink.write([d])) == ["new"]
        await assert_stored_once(harness, [d])

    async def test_an_empty_batch_is_nothing(self, sink: Sink) -> None:
        assert await sink.write([]) == []

    async def test_what_is_written_again_has_one_effect(self, sink: Sink, harness: SinkHarness) -> None:
        batch = deliveries(3)
        await sink.write(batch[:2])
        again = [replace(d, attempt=2) for d in batch]

        assert outcomes(again, await sink.write(again)) == ["duplicate", "duplicate", "new"]
        await assert_stored_once(harness, batch)

    async def test_another_process_finds_the_duplicate_too(self, sink: Sink, harness: SinkHarness) -> None:
        batch = deliveries(2)
        await sink.write(batch)
        async with harness.open() as other:
            assert outcomes(batch, await other.write(batch)) == ["duplicate", "duplicate"]

    async def test_an_id_repeated_in_a_batch_has_one_effect(self, sink: Sink, harness: SinkHarness) -> None:
        one, other = deliveries(2)
        batch = [one, other, replace(one)]

        assert outcomes(batch, await sink.write(batch)) == ["new", "new", "duplicate"]
        await assert_stored_once(harness, [one, other])

    @pytest.mark.parametrize("same_batch", [True, False])
    async def test_a_known_id_with_other_bytes_is_a_conflict_and_changes_nothing(
        self, sink: Sink, harness: SinkHarness, same_batch: bool
    ) -> None:
        first = delivery(b'{"n": "first"}')
        second = delivery(b'{"n": "second"}', id=first.message.id)
        neighbour = delivery(b'{"n": "neighbour"}')
        if same_batch:
            results = (await sink.write([first, second, neighbour]))[1:]
        else:
            await sink.write([first])
            results = await sink.write([second, neighbour])

        assert outcomes([second, neighbour], results) == ["IdempotencyConflict", "new"]
        assert isinstance(results[0].error, IdempotencyConflict)
        assert results[0].error.new_id == conflict_id(first.message.id, second.message.body)
        await assert_stored_once(harness, [first, neighbour])

    @pytest.mark.parametrize("position", [0, 17, 39])
    async def test_a_bad_message_harms_no_neighbour(
        self, sink: Sink, harness: SinkHarness, position: int
    ) -> None:
        if harness.poison is None:
            pytest.skip("this destination takes everything")
        batch = deliveries(40)
        batch[position] = delivery(harness.poison)
        results = await sink.write(batch)

        found = outcomes(batch, results)
        assert found[:position] + found[position + 1 :] == ["new"] * 39
        error = results[position].error
        assert isinstance(error, MessageRejected)
        assert error.error_class
        assert harness.poison.decode() not in str(error), "a reason must not quote the message"
        await assert_stored_once(harness, batch, but=[batch.pop(position)])

    async def test_a_bad_message_is_bad_again(self, sink: Sink, harness: SinkHarness) -> None:
        """What was refused left no record behind that would let it pass as a duplicate."""
        if harness.poison is None:
            pytest.skip("this destination takes everything")
        d = delivery(harness.poison)

        assert outcomes([d], await sink.write([d])) == outcomes([d], await sink.write([d]))
        assert isinstance((await sink.write([d]))[0].error, MessageRejected)

    async def test_what_nobody_foresaw_is_worth_another_try_and_no_rejection(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        if harness.strange is None:
            pytest.skip("this destination does not fail in unforeseen ways")
        batch = deliveries(5)
        batch[2] = delivery(harness.strange)
        results = await sink.write(batch)

        found = outcomes(batch, results)
        assert found[:2] + found[3:] == ["new"] * 4
        error = results[2].error
        assert error is not None
        assert not isinstance(error, (MessageRejected, SinkUnavailable, SinkMisconfigured, NotTried))
        reason = failure_of(error, sink.destination).reason
        assert harness.strange.decode() not in reason, "a reason must not quote the message"
        await assert_stored_once(harness, batch, but=[batch.pop(2)])

    async def test_a_destination_that_someone_must_correct_says_so_about_itself(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = [delivery(b'{"card": "5500005555555559"}') for _ in range(3)]
        await sink.write(batch[:1])
        async with harness.misconfigured():
            with pytest.raises(SinkMisconfigured) as told:
                await sink.write(batch[1:])
        assert "5500005555555559" not in str(told.value), "a reason must not quote the message"
        assert str(told.value)

        await assert_stored_once(harness, batch[:1], but=batch[1:])
        assert outcomes(batch, await sink.write(batch)) == ["duplicate", "new", "new"]

    async def test_a_destination_that_asks_for_silence_is_quoted_with_its_time(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = [delivery(b'{"card": "5500005555555559"}') for _ in range(3)]
        async with harness.busy(17.0):
            with pytest.raises(SinkUnavailable) as told:
                await sink.write(batch)
        assert told.value.retry_after == 17.0
        assert "5500005555555559" not in str(told.value), "a reason must not quote the message"

        await assert_stored_once(harness, [], but=batch)
        assert outcomes(batch, await sink.write(batch)) == ["new"] * 3

    async def test_an_outage_is_about_the_destination_and_leaves_nothing_half_done(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = deliveries(10)
        await sink.write(batch[:1])
        async with harness.outage():
            with pytest.raises(SinkUnavailable):
                await sink.write(batch)

        await assert_stored_once(harness, batch[:1], but=batch[1:])
        assert outcomes(batch, await sink.write(batch)) == ["duplicate"] + ["new"] * 9

    async def test_a_probe_tells_an_outage(self, sink: Sink, harness: SinkHarness) -> None:
        await sink.probe()
        async with harness.outage():
            with pytest.raises(SinkUnavailable):
                await sink.probe()
        await sink.probe()

    async def test_two_who_write_the_same_at_once_have_one_effect(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = deliveries(200)
        async with harness.open() as other:
            both = await asyncio.gather(_write(sink, batch), _write(other, batch[::-1]))

        first = outcomes(batch, both[0])
        second = outcomes(batch[::-1], both[1])[::-1]
        assert ("new", "new") not in zip(first, second, strict=True)
        # One that had to wait for the other may have handed back what it did not get to.
        while outcomes(batch, results := await _write(sink, batch)) != ["duplicate"] * 200:
            assert {type(r.error) for r in results} <= {type(None), NotTried}
        await assert_stored_once(harness, batch)

    async def test_what_is_cancelled_and_written_again_has_one_effect(
        self, sink: Sink, harness: SinkHarness
    ) -> None:
        batch = deliveries(50)
        writing = asyncio.create_task(sink.write(batch))
        await asyncio.sleep(0.001)
        writing.cancel()
        await asyncio.wait({writing})
        results = await sink.write(batch)

        assert set(outcomes(batch, results)) <= {"new", "duplicate"}
        await assert_stored_once(harness, batch)

    async def test_closing_twice_is_harmless(self, harness: SinkHarness) -> None:
        async with harness.open() as sink:
            await sink.close()
            await sink.close()
