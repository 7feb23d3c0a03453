"""One queue of one process with everything that works on it, but the workers."""

from __future__ import annotations

from dataclasses import dataclass

from consumers.breaker import CircuitBreaker
from consumers.flow import Flow
from consumers.metrics import Tally
from consumers.processor import Processor
from consumers.quarantine import Quarantine
from forebay.sinks import Sink


@dataclass(slots=True, kw_only=True)
class Line:
    """What the workers of one queue share."""

    queue: str
    sink: Sink
    processor: Processor
    breaker: CircuitBreaker
    """Of the destination: other queues with the same one share it."""
    flow: Flow
    tally: Tally
    quarantine: Quarantine
    """Of the process."""
    batch_size: int
    """The most messages in one call of the sink."""
    ordered: bool = False
    """Keep the order of each key, also when a message of it fails."""
