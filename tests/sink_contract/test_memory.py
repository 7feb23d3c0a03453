"""The suite against the simplest thing that keeps the contract: it asks for nothing but the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest

from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, Reject, SinkMisconfigured, SinkUnavailable
from forebay.ids import conflict_id
from forebay.sinks import Sink, WriteResult
from forebay.testing.sink_contract import SinkContract, SinkHarness
from tests.sink_contract.destinations import POISON, STRANGE


class DictSink:
    destination = "dict"

    def __init__(self, harness: DictHarness) -> None:
        self._harness = harness

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        await self.probe()
        return [self._write(d.message.id, d.message.body) for d in batch]

    def _write(self, message_id: str, body: bytes) -> WriteResult:
        stored = self._harness.bodies
        if body == POISON:
            return WriteResult(message_id=message_id, error=Reject("no cards"))
        if body == STRANGE:
            return WriteResult(message_id=message_id, error=KeyError(body.decode()))
        if message_id not in stored:
            stored[message_id] = body
            return WriteResult(message_id=message_id)
        if stored[message_id] == body:
            return WriteResult(message_id=message_id, duplicate=True)
        conflict = IdempotencyConflict(message_id, conflict_id(message_id, body))
        return WriteResult(message_id=message_id, error=conflict)

    async def probe(self) -> None:
        if self._harness.down is not None:
            raise self._harness.down

    async def close(self) -> None:
        pass


class DictHarness(SinkHarness):
    poison = POISON
    strange = STRANGE

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.down: Exception | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Sink]:
        yield DictSink(self)

    async def stored(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        return [(i, self.bodies[i]) for i in ids if i in self.bodies]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with self.saying(SinkUnavailable("down")):
            yield

    @asynccontextmanager
    async def misconfigured(self) -> AsyncIterator[None]:
        with self.saying(SinkMisconfigured("no permission")):
            yield

    @asynccontextmanager
    async def busy(self, seconds: float) -> AsyncIterator[None]:
        with self.saying(SinkUnavailable("busy", retry_after=seconds)):
            yield

    @contextmanager
    def saying(self, error: Exception) -> Iterator[None]:
        self.down = error
        yield
        self.down = None


class TestMemory(SinkContract):
    @pytest.fixture
    def harness(self) -> SinkHarness:
        return DictHarness()
