"""How many connections are open, and which of them go when there are too many."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

import structlog

from forebay.http_server import BACKLOG

log = structlog.get_logger()

OTHER_FILES = 256 + BACKLOG
"""Files kept free: for queue, database and log, and for what is accepted in one turn of the loop."""


class Connection(Protocol):
    """One client's."""

    @property
    def at_work(self) -> bool:
        """A whole request of it is being answered."""

    def give_up(self) -> None:
        """Close it."""


def _nobody() -> None:
    pass


class Connections:
    """
    The open connections of one process, of which at most `most` are kept.

    One more, and that one is closed which has been sending a request for longest: good clients are
    soon done, so that it is a slow one. If there is none, the one that has been idle for longest
    since its last answer. Never one with a request at work. Uvicorn uses it like a set.
    """

    def __init__(self, most: int) -> None:
        self.on_end: Callable[[], None] = _nobody
        """Called when one is there no more."""
        self._most = most
        self._sending: dict[Connection, None] = {}
        """New, in the middle of a request, or with one at work, in the order in which they began."""
        self._resting: dict[Connection, None] = {}
        """Between two requests, in the order of their last answers."""

    def __len__(self) -> int:
        return len(self._sending) + len(self._resting)

    def __iter__(self) -> Iterator[Connection]:
        return chain(self._sending, self._resting)

    def add(self, connection: Connection) -> None:
        self._sending[connection] = None
        if len(self) > self._most:
            given_up = next((c for c in self if not c.at_work), None)
            if given_up is not None:
                self.discard(given_up)
                given_up.give_up()

    def discard(self, connection: Connection) -> None:
        self._sending.pop(connection, None)
        self._resting.pop(connection, None)
        self.on_end()

    def began(self, connection: Connection) -> None:
        """It has sent the first byte of a request."""
        if connection in self._resting:
            del self._resting[connection]
            self._sending[connection] = None

    def answered(self, connection: Connection) -> None:
        """Its request has its answer; that it began need not have been told."""
        if connection in self._sending:
            del self._sending[connection]
        elif connection in self._resting:
            del self._resting[connection]
        else:
            return
        self._resting[connection] = None


def most_connections(asked: int) -> int:
    """
    As many of `asked` as this process may have files open for; its soft limit is raised as far as needed.

    A process that runs out of files cannot accept anybody, good or bad.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = asked + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        if soft < wanted:
            fits = max(soft - OTHER_FILES, soft // 2)
            log.warning(
                "the limit of open files allows fewer connections than gateway.max_connections",
                files=soft,
                connections=fits,
                asked=asked,
            )
            return fits
    return asked
