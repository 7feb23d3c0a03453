"""The `[queues.<name>.http]` and `[queues.<name>.forward]` tables."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from forebay.brokers.tls import TLSSettings
from forebay.section import Password, PositiveSeconds, Section

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A field name of HTTP (RFC 9110, section 5.6.2)."""

OURS = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers that belong to the connection or to the body's form: never taken from settings or messages."""

Status = Annotated[int, Field(ge=400, le=599)]


class HttpSettings(Section):
    """One request per message. What each answer means: docs/sinks.md."""

    url: SecretStr | None = None
    """Where messages are sent: https://host/path. An address of a private network is fine here."""
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    """The request's method."""
    headers: tuple[Password, ...] = ()
    """Sent with every request, one "Name: value" each; never shown. As text, in a variable or a secret file,
    one per line."""
    forward_headers: tuple[str, ...] = ("*",)
    """Which of the message's own headers are passed on: names, a * at the end stands for any rest."""
    header_prefix: str = "Forebay-Meta-"
    """Put before the names of those, so that no producer can set a header that means something else."""
    idempotency_header: str = "Idempotency-Key"
    """The header that carries the message's id, by which the receiver knows what it has already."""
    signing_secrets: tuple[Password, ...] = ()
    """Sign requests as Standard Webhooks says, once with each of these ("whsec_…"): give the new secret
    beside the old one while receivers change. As text they are separated by commas or spaces."""
    connections: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Requests at once in one process, each on a connection that is kept and used again."""
    connect_timeout: PositiveSeconds = 5.0
    """How long a connection may take to come about."""
    timeout: PositiveSeconds = 15.0
    """How long a request may take as a whole. Without an answer by then the attempt
    has failed."""
    message_statuses: tuple[Status, ...] = ()
    """Statuses that refuse the message for good, besides those of docs/sinks.md."""
    retry_statuses: tuple[Status, ...] = ()
    """Statuses after which the message is tried again, as a counted attempt."""
    destination_statuses: tuple[Status, ...] = ()
    """Statuses that mean: the service is down or overloaded. The queue pauses, no attempt is counted."""
    configuration_statuses: tuple[Status, ...] = ()
    """Statuses that mean: someone must correct the settings or the service. The queue pauses."""
    follow_redirects: bool = False
    """Follow 307 and 308: on the same host, or to a public address; never from https to http."""
    proxy: SecretStr | None = None
    """A forward proxy, http://user:password@host:port. Proxies named by the environment are not used."""
    tls: TLSSettings = TLSSettings()
    """How the service's certificate is checked, and who we are to it."""

    @field_validator("url", "proxy")
    @classmethod
    def _has_a_host(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
                raise ValueError("it must be https://host/path or http://host:port/path")
        return url

    @field_validator("headers", mode="before")
    @classmethod
    def _lines(cls, value: object) -> object:
        return _split(value, r"[\r\n]+")

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: tuple[Password, ...]) -> tuple[Password, ...]:
        for name, value in (header_of(h) for h in headers):
            # Never the value, and not what may be one.
            if not _TOKEN.fullmatch(name) or not value.isprintable():
                raise ValueError('each is "Name: value", with printable characters only')
            if name.lower() in OURS:
                raise ValueError(f"{name} is set by Forebay; leave it out")
        return headers

    @field_validator("idempotency_header")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _TOKEN.fullmatch(name) or name.lower() in OURS:
            raise ValueError(f"{name!r} cannot be used; a name like Idempotency-Key can")
        return name

    @field_validator("header_prefix")
    @classmethod
    def _begins_a_name(cls, prefix: str) -> str:
        if prefix and not _TOKEN.fullmatch(prefix):
            raise ValueError(f"{prefix!r} is no beginning of a header's name; one is X-Meta-")
        return prefix

    @field_validator("signing_secrets", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return _split(value, r"[\s,]+")

    @field_validator("signing_secrets")
    @classmethod
    def _are_secrets(cls, secrets: tuple[Password, ...]) -> tuple[Password, ...]:
        for secret in secrets:
            if not secret_bytes(secret):
                raise ValueError('each is "whsec_" and base64, as the receiver has it')
        return secrets

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        in_url = self.url is not None and urlsplit(self.url.get_secret_value()).username is not None
        if in_url and any(header_of(h)[0].lower() == "authorization" for h in self.headers):
            raise ValueError("url holds a user, and headers an Authorization; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        seen: set[int] = set()
        for statuses in (
            self.message_statuses,
            self.retry_statuses,
            self.destination_statuses,
            self.configuration_statuses,
        ):
            if twice := seen.intersection(statuses):
                raise ValueError(f"status {min(twice)} is given two meanings; leave it in one list")
            seen.update(statuses)
        return self


class ForwardSettings(Section):
    """Publishes each message again, with its id, key, headers and body."""

    queue: str | None = None
    """The queue that takes the messages; made if it does not exist."""
    broker_url: SecretStr | None = None
    """The broker that it is on. None: the one of `broker.url`. The tables of [broker] apply to it too."""
    timeout: PositiveSeconds = 10.0
    """How long the broker may take to confirm a batch."""
    max_hops: Annotated[int, Field(ge=1, le=100)] = 8
    """How often a message may be forwarded in its life; one more makes it a dead letter. It ends loops."""


def header_of(line: Password) -> tuple[str, str]:
    """Name and value of one of `headers`; of what is none, empty names."""
    name, colon, value = line.get_secret_value().partition(":")
    return (name.strip(), value.strip()) if colon else ("", "")


def secret_bytes(secret: Password) -> bytes:
    """The key that a Standard Webhooks secret stands for; empty if it is none."""
    text = secret.get_secret_value().removeprefix("whsec_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _split(value: object, separator: str) -> object:
    """The parts of texts: a variable or a secret file gives the whole list as one text."""
    if not isinstance(value, (list, tuple)):
        return value
    parts: list[object] = []
    for item in value:
        parts += [p for p in re.split(separator, item) if p.strip()] if isinstance(item, str) else [item]
    return tuple(parts)
