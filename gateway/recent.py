"""The ids this process accepted lately, for status questions asked before the database knows them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from forebay.brokers.api import Durability

GENERATION = 20_000


class Accepted(NamedTuple):
    queue: str
    at: datetime
    durability: Durability


class RecentIds:
    """
    Remembers between `generation` and twice as many ids.

    Two dictionaries take turns: adding is one store, and forgetting is dropping a
    whole generation, where an LRU would pay per message for an order nobody needs.
    """

    __slots__ = ("_generation", "_new", "_old")

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._new: dict[str, Accepted] = {}
        self._old: dict[str, Accepted] = {}

    def add(self, message_id: str, queue: str, accepted_at: datetime, durability: Durability) -> None:
        if len(self._new) >= self._generation:
            self._old = self._new
            self._new = {}
        self._new[message_id] = Accepted(queue, accepted_at, durability)

    def get(self, message_id: str) -> Accepted | None:
        return self._new.get(message_id) or self._old.get(message_id)
