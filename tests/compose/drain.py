"""How much faster four consumers empty a queue than two, where each row costs the database its time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.compose.stack import Stack
from tests.compose.trouble import QUEUE, send
from tests.system.harness import until

PER_ROW = 0.02
"""Seconds that a row takes in the connection that writes it; no processor is busy meanwhile."""

SLOW = f"""
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep({PER_ROW}); RETURN NEW; END';
    CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION slow();
"""
AS_BEFORE = "DROP TRIGGER slow ON messages; DROP FUNCTION slow();"

WAITING = 16_000
MEASURED = {2: 2000, 4: 4000}
"""How many rows are timed with so many consumers, after as many that are not."""


def run(stack: Stack, folder: Path) -> dict[str, Any]:
    """Rows per second of two and of four consumers, and what one is of the other."""
    small = stack.changed_by("tests/compose/small-batches.yml")
    small.compose("up", "-d", "--scale", "consumer=0")
    stack.sql(SLOW)
    record = folder / "drained.txt"
    send(stack, record, WAITING)
    rates = {number: rate(small, number, timed) for number, timed in MEASURED.items()}
    stack.sql(AS_BEFORE)
    found = stack.verify(record)
    stack.up()
    return {
        "rows_per_second": {str(number): round(found, 1) for number, found in rates.items()},
        "four_to_two": round(rates[4] / rates[2], 2),
        "lost": found["lost"],
        "duplicated": found["duplicated"],
    }


def rate(stack: Stack, consumers: int, timed: int) -> float:
    stack.compose("up", "-d", "--scale", f"consumer={consumers}")
    until(lambda: stack.healthy("consumer") == consumers, within=180, what=f"{consumers} consumers", every=1)
    rows(stack, at_least=rows(stack) + timed // 6)
    began, first = time.monotonic(), rows(stack)
    last = rows(stack, at_least=first + timed)
    return (last - first) / (time.monotonic() - began)


def rows(stack: Stack, at_least: int = 0) -> int:
    count = 0

    def enough() -> bool:
        nonlocal count
        count = int(stack.sql(f"SELECT count(*) FROM messages WHERE queue = '{QUEUE}';"))
        return count >= at_least

    until(enough, within=240, what=f"{at_least} rows", every=1)
    return count
