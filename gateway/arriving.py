"""Bodies that are still on their way, and which of them give way when memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

SLOW = 1.0
"""Seconds after which a body that is not there yet may be given up for the sake of others."""


class Holder(Protocol):
    """A request whose body is arriving."""

    reserved: int
    """Bytes of it that are here."""


class Arriving:
    """
    The bodies that did not come in one piece, the oldest first.

    A producer on a good line is done within moments; what has been arriving for long is slow, or
    means us ill. So when a body needs room that is not there, the ones that came before it and are
    slow are given up, the oldest first, and never one for the sake of an older one.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._bodies: dict[Holder, tuple[float, Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, body: Holder, give_up: Callable[[], None]) -> None:
        """`give_up` is called at most once, and must give the body's bytes back at once."""
        self._bodies[body] = self._now(), give_up

    def remove(self, body: Holder) -> float | None:
        """When it began to arrive; None: it was given up."""
        found = self._bodies.pop(body, None)
        return None if found is None else found[0]

    def make_room(self, size: int, *, asking: Holder | None = None) -> bool:
        """Give up slow bodies of at least `size` bytes together, or none; `asking` is not among them."""
        chosen: list[Holder] = []
        for body in self._slow(asking):
            if size <= 0:
                break
            chosen.append(body)
            size -= body.reserved
        if size > 0:
            return False
        for body in chosen:
            self._bodies.pop(body)[1]()
        return True

    def could_make_room(self, size: int) -> bool:
        """Whether slow bodies hold that many bytes."""
        return sum(body.reserved for body in self._slow(None)) >= size

    def _slow(self, asking: Holder | None) -> Iterator[Holder]:
        latest = self._now() - SLOW
        for body, (since, _) in self._bodies.items():
            if body is asking or since > latest:
                return
            if body.reserved:
                yield body
