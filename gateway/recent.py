"""The ids this process accepted lately, for status questions asked before the database knows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from forebay.brokers.api import Durability

GENERATION = 20_000

PAGE = 256
"""
Ids from which on a dictionary gets no more of them.

A small one stays in the processor's cache: into one of a whole generation each id goes at the price of two
or three reads from memory (keyed messages, `make bench ONLY=keys`). Who asks looks through at most some 160.
"""

_Generation = dict[tuple[str, Durability], list[dict[str, datetime]]]


class Accepted(NamedTuple):
    queue: str
    at: datetime
    durability: Durability


class RecentIds:
    """
    Remembers between `generation` and twice as many ids.

    Two generations take turns: adding is one store, and forgetting is dropping a whole
    generation, where an LRU would pay per message for an order nobody needs. Within one there are
    dictionaries per queue and durability, so that an id needs no object of its own that
    the garbage collector would have to follow.
    """

    __slots__ = ("_generation", "_left", "_new", "_old")

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = self._left = generation
        self._new: _Generation = {}
        self._old: _Generation = {}

    def room(self, queue: str, durability: Durability, count: int) -> dict[str, datetime]:
        """Where the next `count` ids of this queue go, with the time when each was accepted."""
        if self._left <= 0:
            self._old, self._new = self._new, {}
            self._left = self._generation
        self._left -= count
        pages = self._new.get((queue, durability))
        if pages is None:
            pages = self._new[queue, durability] = [{}]
        if len(pages[-1]) >= PAGE:
            pages.append({})
        return pages[-1]

    def add(self, message_id: str, queue: str, accepted_at: datetime, durability: Durability) -> None:
        self.room(queue, durability, 1)[message_id] = accepted_at

    def add_all(self, ids: Sequence[str], queue: str, accepted_at: datetime, durability: Durability) -> None:
        """The same for ids that have all the rest in common."""
        self.room(queue, durability, len(ids)).update(dict.fromkeys(ids, accepted_at))

    def get(self, message_id: str) -> Accepted | None:
        for generation in (self._new, self._old):
            for (queue, durability), pages in generation.items():
                for ids in reversed(pages):  # an id may have come twice
                    at = ids.get(message_id)
                    if at is not None:
                        return Accepted(queue, at, durability)
        return None
