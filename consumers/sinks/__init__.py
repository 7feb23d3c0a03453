"""Where messages end up: the database, your own table or function, an HTTP service, another queue."""

from __future__ import annotations

from importlib.metadata import entry_points

ENTRY_POINTS = "forebay.sinks"
"""Where other packages offer sinks: a callable (queue, settings, database) -> Sink."""


def known_sinks() -> list[str]:
    """The names that `sink` may have in a queue's settings: ours, and those of installed packages."""
    ours = {"broker", "database", "http", "python", "table"}
    return sorted(ours.union(entry_points(group=ENTRY_POINTS).names))


class NotTried(Exception):
    """
    In a result: the sink did not get to this message; it is handed back, uncounted.

    For sinks that work through a batch one by one and must not hold the rest of it
    for minutes because each message takes its time.
    """
