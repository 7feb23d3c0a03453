"""The embedded queue keeps the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from forebay.brokers.api import Broker
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import Turn
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.testing.broker_contract import BrokerContract, BrokerHarness

SETTINGS = SQLiteSettings(ballast_bytes=0)


class SQLiteHarness(BrokerHarness):
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return SQLiteBroker.open(self.path, SETTINGS)

    def open_small(self, max_bytes: int) -> AbstractAsyncContextManager[Broker]:
        return SQLiteBroker.open(self.path, SETTINGS.model_copy(update={"max_bytes": max_bytes}))

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Another process that was stopped while it had the turn to write looks just so."""
        turn = Turn(self.path.with_name(self.path.name + ".run"))
        try:
            await asyncio.to_thread(turn.__enter__)
            yield
        finally:
            turn.__exit__(None, None, None)
            turn.close()


class TestSQLite(BrokerContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> BrokerHarness:
        return SQLiteHarness(tmp_path / "queue.db")
