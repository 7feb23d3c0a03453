"""Deliveries and small helpers for the consumers' tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from forebay.brokers.api import Delivery
from forebay.message import Message

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def delivery(
    message_id: str = "a", *, attempt: int = 1, body: bytes = b"{}", queue: str = "orders", **fields: object
) -> Delivery:
    message = Message(id=message_id, body=body, accepted_at=NOON - timedelta(seconds=1))
    return Delivery(
        message=replace(message, **fields),  # type: ignore[arg-type]  # the names are Message's own
        queue=queue,
        attempt=attempt,
        receipt=None,
    )


@dataclass
class FakeClock:
    """Monotonic time that moves when told to."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
