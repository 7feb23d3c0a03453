"""The `[broker.rabbitmq]` table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from forebay.brokers.tls import TLSSettings
from forebay.section import ByteCount, PositiveSeconds, Section


class RabbitMQSettings(Section):
    """A RabbitMQ server or cluster, 3.10 or later."""

    prefix: str = ""
    """Put before the name of every queue, so that two installations can share one virtual host."""
    max_bytes: ByteCount = 10 * 2**30
    """Each queue refuses publishes (503) while it holds more bytes than this. Fixed when it is made."""
    max_body_bytes: ByteCount = 900_000
    """The largest body taken; the default fits every broker, so that a swap refuses nothing."""
    delays: tuple[PositiveSeconds, ...] = (1, 5, 15, 60, 300, 900, 3600)
    """The delay queues, in seconds; any delay is made of steps of these, never early."""
    replicas: Annotated[int, Field(ge=1)] = 3
    """On how many nodes a queue is kept; of a smaller cluster, all. Fixed when it is made."""
    max_unconfirmed: Annotated[int, Field(ge=1)] = 2_000
    """Messages of one process that may wait for the server's confirmation; more wait their turn."""
    max_unconfirmed_bytes: ByteCount = 32 * 2**20
    """The same in bytes of bodies."""
    heartbeat: PositiveSeconds = 10.0
    """A connection that says nothing for longer is given up."""
    connect_timeout: PositiveSeconds = 5.0
    """For one attempt to reach one host; the others are tried next."""
    idle_hold: PositiveSeconds = 60.0
    """What a consumer was sent and does not take, because it is paused, goes back to the queue after this.
    Keep it far below the server's consumer_timeout (30 minutes), which ends a channel that holds on."""

    management_url: SecretStr | None = None
    """http://host:15672,host2:15672: the management API, which tells how many nodes hold a queue; without it
    no message is called `replicated`. User and password are those of broker.url, unless it has its own."""
    tls: TLSSettings = TLSSettings()
    """For `amqps://`, and for a management_url with https."""

    @field_validator("delays")
    @classmethod
    def _rising(cls, delays: tuple[float, ...]) -> tuple[float, ...]:
        if not delays or list(delays) != sorted(set(delays)):
            raise ValueError("delays must rise and not be empty, like [1, 5, 15, 60]")
        if delays[0] < 0.001:
            raise ValueError("the smallest delay is a millisecond")
        return delays
