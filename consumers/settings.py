"""The `[consumer]` and `[queues.<name>]` tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forebay.section import PositiveSeconds, Seconds, Section

ONE_BY_ONE = 10
"""
Messages taken together for a handler that gets one at a time, unless the settings say another number.

It may be slow, and for what one replica has taken the others wait in vain.
"""


class RetrySettings(Section):
    """Exponential backoff with full jitter; `forebay explain QUEUE` prints the schedule."""

    max_attempts: Annotated[int, Field(ge=1)] = 12
    """Counted tries before a message goes to the dead letters."""
    base: PositiveSeconds = 1.0
    """The first delay is at most this."""
    cap: PositiveSeconds = 600.0
    """No delay is longer than this."""
    max_age: PositiveSeconds = 86_400.0
    """A message older than this goes to the dead letters when it fails, from its second failure on."""


class BreakerSettings(Section):
    """When to stop pulling because the destination is down."""

    failure_threshold: Annotated[int, Field(ge=1)] = 3
    """Failed calls in a row that open the breaker."""
    recovery_time: PositiveSeconds = 1.0
    """How long it stays open the first time; doubles with each failed probe, with jitter."""
    max_recovery_time: PositiveSeconds = 30.0
    """The longest it stays open between two probes."""


class QueueSettings(Section):
    """One queue. `[queue_defaults]` has the same fields and applies to all."""

    sink: str = "database"
    """Where messages end up: "database", "python" (your handler), or the name of an installed sink."""
    handler: str | None = None
    """Your function, as "package.module:function"; implies sink = "python"."""
    batch_size: Annotated[int, Field(ge=1)] = 500
    """The most messages written in one transaction; unless set, 10 for a handler that takes one at a time."""
    max_wait: Seconds = 0.02
    """How long to wait for a batch to fill; a lone message waits at most this long."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Batches in work at once in one process."""
    order: Literal["none", "key"] = "none"
    """"key": messages with the same ordering key are handled in order, where the broker can."""
    retry: RetrySettings = RetrySettings()
    """What happens after a failed attempt."""
    breaker: BreakerSettings = BreakerSettings()
    """What happens when the destination is down."""


class ConsumerSettings(Section):
    """The consumers of one process."""

    shutdown_timeout: PositiveSeconds = 25.0
    """After SIGTERM: how long the batch in hand may take before it is handed back."""
    health_host: str = "127.0.0.1"
    """Where /livez, /readyz and /metrics of `forebay consume` listen."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Their port; none by default."""
