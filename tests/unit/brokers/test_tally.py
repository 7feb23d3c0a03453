"""Floods are told in one line, and nothing is left untold."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from forebay.brokers import tally
from forebay.brokers.tally import Tally
from tests.waiting import until


async def test_a_flood_is_one_line_with_its_count_and_its_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally, "EVERY", 0.05)
    said: list[dict[str, Any]] = []
    counted = Tally(lambda **fields: said.append(fields))
    for offset in range(200):
        counted.add(offset=offset)
    assert said == []
    await until(lambda: bool(said), 5)
    assert said == [{"count": 200, "offset": 0}]

    counted.add(offset=300)
    await until(lambda: len(said) == 2, 5)
    assert said[1] == {"count": 1, "offset": 300}


async def test_what_was_not_said_yet_is_said_at_the_end_and_only_once() -> None:
    said: list[dict[str, Any]] = []
    counted = Tally(lambda **fields: said.append(fields))
    counted.add()
    counted.add()
    counted.close()
    counted.close()
    await asyncio.sleep(0)
    assert said == [{"count": 2}]
