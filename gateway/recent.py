"""The ids this process accepted lately, for status questions asked before the database knows them."""

from __future__ import annotations

from datetime import datetime

GENERATION = 20_000


class RecentIds:
    """
    Remembers between `generation` and twice as many ids.

    Two dictionaries take turns: adding is one store, and forgetting is dropping a
    whole generation, where an LRU would pay per message for an order nobody needs.
    """

    __slots__ = ("_generation", "_new", "_old")

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._new: dict[str, tuple[str, datetime]] = {}
        self._old: dict[str, tuple[str, datetime]] = {}

    def add(self, message_id: str, queue: str, accepted_at: datetime) -> None:
        if len(self._new) >= self._generation:
            self._old = self._new
            self._new = {}
        self._new[message_id] = (queue, accepted_at)

    def get(self, message_id: str) -> tuple[str, datetime] | None:
        """The queue it went to, and when it was accepted."""
        return self._new.get(message_id) or self._old.get(message_id)
