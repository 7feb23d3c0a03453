"""Where messages end up: the database, your own function."""

from __future__ import annotations


class NotTried(Exception):
    """
    In a result: the sink did not get to this message; it is handed back, uncounted.

    For sinks that work through a batch one by one and must not hold the rest of it
    for minutes because each message takes its time.
    """
