"""The one value that crosses the whole system: what a client sent and a sink stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True, kw_only=True)
class Message:
    """
    An accepted message. Never changed in place; make a changed copy with `dataclasses.replace`.

    The class is not frozen because assigning fields of a frozen dataclass costs
    three times as much, and one of these is made per message on both sides.
    """

    id: str
    """A UUID in canonical form, unique per message; sinks deduplicate on it."""
    body: bytes = field(repr=False)
    """Opaque: stored and forwarded exactly as received."""
    accepted_at: datetime
    """When the gateway took responsibility for it. Timezone-aware, UTC."""
    key: str | None = None
    """The ordering key: equal keys keep their order on brokers whose `ordering` is "by_key"."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What the producer attached, under lower-case names; never credentials or cookies."""
    content_type: str = "application/octet-stream"
    not_before: datetime | None = None
    """Not delivered before this time (UTC). None: at once."""
    expires_at: datetime | None = None
    """Not worth delivering after this time (UTC); dead-lettered as `expired`. None: never."""
