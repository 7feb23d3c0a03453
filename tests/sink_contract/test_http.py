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
from tests.servers.receiver import Receiver
from tests.sink_contract.destinations import PATIENT, POISON


async def no_cards(request: web.Request, body: bytes) -> web.StreamResponse | None:
    return web.Response(status=422, text=body.decode()) if body == POISON else None


class HttpHarness(SinkHarness):
    poison = POISON

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
