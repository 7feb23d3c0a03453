"""The `[gateway]` table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from forebay.brokers.api import Durability
from forebay.section import ByteCount, PositiveSeconds, Seconds, Section


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", text):
        raise ValueError(f'{text!r} is no origin; write scheme, host and perhaps port: "https://a.example"')
    return text


Origin = Annotated[str, AfterValidator(_origin)]


class GatewaySettings(Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Where to listen. Beyond loopback, API keys (keys_file) are required."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Where to listen; 0 picks a free port and prints it."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that share the port. One per container and more replicas is the better default."""
    insecure_no_auth: bool = False
    """Listen beyond loopback without API keys: anyone who reaches the port may post."""
    keys_file: Path | None = None
    """
    The API keys, as hashes: every request needs one of them. `forebay api-keys` writes it,
    and a change counts within a second or two. With insecure_no_auth it is still used.
    """
    tls_cert: Path | None = None
    """The certificate to serve HTTPS with, and those between it and the authority: PEM."""
    tls_key: Path | None = None
    """Its private key (PEM, unencrypted); None: it is in tls_cert. A renewed pair counts within a minute."""
    cors_origins: tuple[Origin, ...] = ()
    """Pages that may call from a browser, by origin: "https://shop.example"; "*" is all."""
    max_body_bytes: ByteCount = 900_000
    """Larger bodies are answered 413, before the rest is read."""
    max_batch_items: Annotated[int, Field(ge=1)] = 10_000
    """Items that one batch may have. Those before the first that is too many are stored; then 413."""
    max_in_flight: Annotated[int, Field(ge=1)] = 2_000
    """Messages that are being published; above it 503 + Retry-After."""
    max_in_flight_bytes: ByteCount = 32 * 2**20
    """Body bytes in memory, of those and of requests that are being read; above it 503 + Retry-After."""
    max_connections: Annotated[int, Field(ge=10)] = 10_000
    """Open connections of one process. One more closes the one that has gone longest without an answer."""
    request_timeout: PositiveSeconds = 5.0
    """Every request is answered within this time after its body arrived."""
    fast_lane: bool = True
    """Plain requests are served past the framework. Off, nothing changes but how much each costs."""
    max_waiting: Annotated[int, Field(ge=0)] = 2_000
    """Requests that wait at once for what becomes of their message (Prefer: wait); others are not kept
    waiting, and are answered when the message is accepted."""
    body_timeout: PositiveSeconds = 10.0
    """The longest pause between two pieces of a body; then 408."""
    min_durability: Durability = "journaled"
    """The weakest durability that may be answered 202."""
    keep_headers: tuple[str, ...] = ()
    """Request headers kept with the message, besides Forebay-Meta-* and ce-*."""
    idempotency_memory: Annotated[int, Field(ge=0)] = 100_000
    """Idempotency keys whose replies one process remembers."""
    broker_budget: PositiveSeconds = 1.0
    """With a journal or a fallback: how long the broker, and each fallback, may take to confirm a message."""
    journal: Path | None = None
    """
    A directory where messages are kept while the broker is away; it must outlive the process, and gateways
    of one host may share it. None: then they are refused. docs/journal.md says what it promises.
    """
    journal_max_bytes: ByteCount = 2**30
    """Bytes of bodies in the journal of one process; above it 503 `journal-full`."""
    journal_max_age: PositiveSeconds = 86_400.0
    """Once the oldest message in the journal is older, no more are taken: 503 `journal-full`."""
    drain_delay: Seconds = 0.0
    """After SIGTERM: how long to go on serving while /readyz already says 503."""
    shutdown_timeout: PositiveSeconds = 25.0
    """After that: how long requests in flight may take before they are cut off."""

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key is set without tls_cert; set both or neither")
        return self

    @model_validator(mode="after")
    def _a_full_body_fits(self) -> Self:
        if self.max_in_flight_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_in_flight_bytes is {self.max_in_flight_bytes}, less than one body of"
                f" max_body_bytes ({self.max_body_bytes}); raise it, or lower max_body_bytes"
            )
        return self

    @model_validator(mode="after")
    def _the_journal_has_time_left(self) -> Self:
        if self.journal is not None and self.broker_budget >= self.request_timeout:
            raise ValueError(
                f"broker_budget is {self.broker_budget:g} s, which leaves nothing of request_timeout"
                f" ({self.request_timeout:g} s) for the journal; lower it"
            )
        return self
