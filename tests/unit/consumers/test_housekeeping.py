"""What consumers tidy up beside their work."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from consumers.housekeeping import Housekeeper
from forebay.ids import new_id
from forebay.storage.answers import KeptAnswer, answers_to, keep
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.waiting import until


async def test_answers_to_forwarded_requests_are_forgotten_after_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.housekeeping.EVERY", 0.01)
    database = Database(f"sqlite:///{tmp_path}/a.db", DatabaseSettings(answer_retention=60.0))
    migrate(database)
    old, young = (
        KeptAnswer(
            id=new_id(), destination="http:billing", status=200, headers={}, body=b"", complete=True,
            digest=b"d" * 32, answered_at=datetime.now(UTC) - timedelta(seconds=age),
        )
        for age in (3_600, 1)
    )  # fmt: skip
    with database.begin() as connection:
        keep(connection, [old, young])

    work = asyncio.create_task(Housekeeper(database, None).run())
    await until(lambda: old.id not in answers_to(database, [old.id]))
    work.cancel()
    await asyncio.wait({work})

    assert list(answers_to(database, [old.id, young.id])) == [young.id]
    database.dispose()
