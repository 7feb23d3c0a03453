"""The phases of the demo: when each begins, what happens, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from forebay.demo.servers import Part


class Event(Enum):
    """What happens at the beginning of a phase."""

    NOTHING = "nothing"
    DATABASE_FAILS = "the database fails"
    BROKER_FAILS = "the broker fails"
    POISON = "a poison message"
    ALL_BACK = "everything comes back"


@dataclass(frozen=True)
class Phase:
    begins: float
    """As a share of the whole time."""
    event: Event
    name: str
    """Two or three words, for the picture."""
    sentence: str


def phases(database: Part, broker: Part, rate: float) -> list[Phase]:
    direct = "keeps its senders waiting until they give up" if database.fate == "locked" else "answers 500"
    return [
        Phase(0.0, Event.NOTHING, "steady load", f"{rate:g} orders a second to each side: all is well."),
        Phase(
            0.16, Event.DATABASE_FAILS, f"database {database.fate}",
            f"{database.label} {database.fate}:"
            f" senders to the gateway notice nothing; the direct endpoint {direct}.",
        ),
        Phase(
            0.36, Event.BROKER_FAILS, f"broker {broker.fate}, too",
            f"{broker.label} {broker.fate}, too: the gateway keeps what it accepts in a journal of its own.",
        ),
        Phase(
            0.56, Event.POISON, "poison",
            "A poison message: an order whose total is “free of charge”. It is accepted like all the others.",
        ),
        Phase(
            0.68, Event.ALL_BACK, "all return",
            "Everything comes back: what waited is stored; the poison message alone is a dead letter.",
        ),
    ]  # fmt: skip
