"""What queues are called, here and on the brokers."""

from __future__ import annotations

import re

from forebay.errors import SettingsError

QUEUE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
QUEUE_NAME_RULE = "lower-case letters, digits and hyphens, at most 63, starting with a letter or digit"

DEAD_SUFFIX = ".dead"


def check_queue_name(name: str) -> str:
    """
    Return `name` if a user may call a queue so.

    Dots and underscores are ours (`orders.dead`) and Kafka's.

    Raises:
        SettingsError: with the rule in its text.
    """
    if not QUEUE_NAME.fullmatch(name):
        raise SettingsError(f"queue name {name!r} is not allowed: {QUEUE_NAME_RULE}")
    return name


def dead_letter_queue(queue: str) -> str:
    """Where the given-up messages of `queue` rest."""
    return queue + DEAD_SUFFIX


def is_dead_letter_queue(name: str) -> bool:
    return name.endswith(DEAD_SUFFIX)


def origin_queue(name: str) -> str:
    """The queue whose dead letters rest in `name`."""
    return name.removesuffix(DEAD_SUFFIX)
