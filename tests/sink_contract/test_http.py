"""The http sink keeps the contract, with a service that knows messages by their Idempotency-Key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from consumers.settings import QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.settings import HttpSettings
from forebay.section import Password
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.testing.sink_contract import SinkContract, SinkHarness
from tests.servers.receiver import Receiver, always
from tests.sink_contract.destinations import PATIENT, POISON, STRANGE


async def no_cards(request: web.Request, body: bytes) -> web.StreamResponse | None:
    status = {POISON: 422, STRANGE: 500}.get(body)
    return None if status is None else web.Response(status=status, text=body.decode())


class HttpHarness(SinkHarness):
    poison = POISON
    strange = STRANGE

    def __init__(self, receiver: Receiver, database_url: str) -> None:
        self.receiver = receiver
        self.receiver.answer = no_cards
        self.database_url = database_url
        http = HttpSettings(url=SecretStr(receiver.url), signing_secrets=(Password("whsec_c2VjcmV0"),))
        self.settings = QueueSettings(sink="http", http=http)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Sink]:
        database = Database(self.database_url, PATIENT)
        sink = make_sink("contract", self.settings, database)
        try:
            yield sink
        finally:
            await sink.close()
            database.dispose()

    async def stored(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        return [(i, self.receiver.effects[i]) for i in ids if i in self.receiver.effects]

    @asynccontextmanager
    async def answering(self, status: int, **headers: str) -> AsyncIterator[None]:
        self.receiver.answer = always(status, **headers)
        yield
        self.receiver.answer = no_cards

    def misconfigured(self) -> AbstractAsyncContextManager[None]:
        return self.answering(404)

    def busy(self, seconds: float) -> AbstractAsyncContextManager[None]:
        return self.answering(503, Retry_After=f"{seconds:.0f}")

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.receiver.away()


class TestHttp(SinkContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[SinkHarness]:
        url = f"sqlite:///{tmp_path}/forebay.db"
        database = Database(url, PATIENT)
        migrate(database)
        database.dispose()
        async with Receiver() as receiver:
            yield HttpHarness(receiver, url)
