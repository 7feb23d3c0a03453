"""The `[consumer]` and `[queues.<name>]` tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from consumers.mapping_settings import TableSettings
from consumers.sinks.settings import ForwardSettings, HttpSettings
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


class BudgetSettings(Section):
    """
    How many messages may be given up before the queue pauses as `suspicious failure rate`.

    Nothing is lost then: `forebay resume QUEUE` goes on. Expired messages and conflicts of
    idempotency keys do not count.
    """

    enabled: bool = True
    """false: never pause, however many are given up."""
    allowance: Annotated[int, Field(ge=1)] = 100
    """Messages that may be given up before others have succeeded, and the most that are saved up."""
    earned: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What one success adds to that: with 0.1, one dead letter for ten successes in the long run."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of the last `window` messages that may be given up."""
    window: Annotated[int, Field(ge=10)] = 500
    """Messages that the share is taken of."""
    max_run: Annotated[int, Field(ge=1)] = 100
    """Messages that may be given up in a row."""


class SchemaSettings(Section):
    """What a queue's bodies must look like; checked by the gateway before it stores anything."""

    file: Path | None = None
    """A JSON Schema (draft 4 to 2020-12). None: any body is taken."""
    mode: Literal["off", "reject"] = "reject"
    """"reject": what does not fit is answered 422 and not stored. "off": as if there were no file."""


class QueueSettings(Section):
    """One queue. `[queue_defaults]` has the same fields and applies to all."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    sink: str = "database"
    """Where messages end up: "database", "table" (yours), "python" (your handler), "http", "broker", or
    the name of an installed sink. docs/sinks.md compares them."""
    handler: str | None = None
    """Your function, as "package.module:function"; implies sink = "python"."""
    http: HttpSettings = HttpSettings()
    """An HTTP service that takes each message; implies sink = "http"."""
    forward: ForwardSettings = ForwardSettings()
    """Another queue, here or on another broker, that takes each message; implies sink = "broker"."""
    batch_size: Annotated[int, Field(ge=1)] = 500
    """The most messages written in one transaction; unless set, 10 for a handler that takes one at a time."""
    max_wait: Seconds = 0.02
    """How long to wait for a batch to fill; a lone message waits at most this long."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Batches in work at once in one process."""
    order: Literal["none", "key"] = "none"
    """
    "key": messages with the same ordering key are handled in order, where the broker can. A failing one
    holds back its own key, and no other, until it is done or dead.
    """
    journal: bool | None = None
    """
    Whether a gateway may journal its messages while the broker is away. None: unless order = "key", since
    the order is kept among messages of one gateway process only.
    """
    schema_: SchemaSettings = Field(default=SchemaSettings(), alias="schema")
    """A JSON Schema that every body must fit."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Messages per second that one process takes at most; `forebay throttle` changes it while it runs."""
    schedule: str | None = None
    """When messages are taken: hours, "01:00-05:00", or a cron expression, "*/10 * * * *". None: always."""
    timezone: str = "UTC"
    """Whose hours the schedule means, "Europe/Berlin"."""
    retry: RetrySettings = RetrySettings()
    """What happens after a failed attempt."""
    breaker: BreakerSettings = BreakerSettings()
    """What happens when the destination is down."""
    dead_letter_budget: BudgetSettings = BudgetSettings()
    """When so many messages are given up that it is rather our fault."""
    table: TableSettings | None = None
    """A table of your own, and where its columns come from."""

    @property
    def journaled(self) -> bool:
        """Whether a gateway keeps its messages in the journal while the broker is away."""
        return self.order != "key" if self.journal is None else self.journal

    @model_validator(mode="after")
    def _schedule_is_one(self) -> QueueSettings:
        if self.schedule is not None:
            from consumers.schedule import parse_schedule

            try:
                parse_schedule(self.schedule, self.timezone, now=lambda: datetime.now(UTC))
            except ValueError as error:
                raise ValueError(f"schedule is wrong: {error}") from None
        return self


class ConsumerSettings(Section):
    """The consumers of one process."""

    shutdown_timeout: PositiveSeconds = 25.0
    """After SIGTERM: how long the batch in hand may take before it is handed back."""
    state_dir: Path | None = None
    """
    Where a consumer notes what it has in hand, so that a message that kills it is found. A place that
    outlives the process, not necessarily the machine. None: in the folder for temporary files.
    """
    crash_limit: Annotated[int, Field(ge=1)] = 2
    """Consumers that a message may kill, with nothing beside it, before it is dead-lettered as `crashed`."""
    health_host: str = "127.0.0.1"
    """Where /livez, /readyz and /metrics of `forebay consume` listen."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Their port; none by default."""
