"""The `[broker.kafka]` table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forebay.brokers.tls import TLSSettings
from forebay.section import ByteCount, Password, PositiveSeconds, Section

Count = Annotated[int, Field(ge=1)]


class KafkaTLSSettings(TLSSettings):
    """Encrypted connections, when enabled. The server's certificate is checked, unless `verify` is off."""

    enabled: bool = False
    """Encrypt. Not told by the URL, which is `kafka://` with and without."""


class KafkaSettings(Section):
    """How topics are made, how long Kafka may take to notice what, and how to log in."""

    partitions: Count = 12
    """Of every topic that we create; also the most consumers that can share a queue."""
    replication: Count | None = None
    """Copies of every topic that we create. None: 3, or 1 on a cluster of a single broker."""
    min_insync_replicas: Count | None = None
    """Copies that a confirmed message has at least. None: 2 with a replication of 3 or more, else 1."""
    retry_delays: Annotated[tuple[PositiveSeconds, ...], Field(min_length=1)] = (1, 5, 15, 60, 300, 900, 3600)
    """Each is a topic of every queue; longer delays take several rounds."""
    retention: PositiveSeconds = 14 * 86_400.0
    """Kafka deletes messages of this age, consumed or not; of retry topics at twice this age."""
    max_body_bytes: ByteCount = 900_000
    """The largest body taken; the default fits every broker, so that a swap refuses nothing."""
    heartbeat: PositiveSeconds = 1.0
    """How soon a consumer learns that others come and go."""
    session_timeout: PositiveSeconds = 10.0
    """A consumer that was silent for so long is taken for dead; its messages go to others."""
    handover: PositiveSeconds = 30.0
    """How long a consumer may keep a partition that another one is to have, to finish what it holds of it."""
    idle_leave: PositiveSeconds = 30.0
    """A consumer that handed messages back and takes none for so long leaves them to others."""
    max_poll_interval: PositiveSeconds = 600.0
    """A consumer that has not asked Kafka for records for so long leaves the group. A paused one goes on
    asking: this is about processes that stand still."""
    request_timeout: PositiveSeconds = 10.0
    """A broker that did not answer for so long is taken for dead."""

    user: str | None = None
    """Who logs in (SASL), unless broker.url names a user. None: nobody does."""
    password: Password | None = None
    """The user's password, unless broker.url has it."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How to log in. None: SCRAM-SHA-512 where there is a user, which never sends the password itself."""
    tls: KafkaTLSSettings = KafkaTLSSettings()
    """For listeners that talk TLS."""
