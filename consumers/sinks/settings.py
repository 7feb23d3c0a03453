"""The `[queues.<name>.http]`, `[queues.<name>.forward]` and `[forward.<name>]` tables."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from forebay.brokers.tls import TLSSettings
from forebay.section import ByteCount, Password, PositiveSeconds, Seconds, Section

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A field name of HTTP (RFC 9110, section 5.6.2)."""

OURS = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers that belong to the connection or to the body's form: never taken from settings or messages."""

MAX_WAIT = 30.0
"""Seconds that a sender may be kept waiting for a service's answer."""

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

Status = Annotated[int, Field(ge=400, le=599)]


class RequestSettings(Section):
    """How a service is asked, whatever it is asked. What each answer means: docs/sinks.md."""

    headers: tuple[Password, ...] = ()
    """Sent with every request, one "Name: value" each; never shown. As text, in a variable or a secret file,
    one per line."""
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

    @field_validator("url", "proxy", check_fields=False)
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


class HttpSettings(RequestSettings):
    """One request per message. What each answer means: docs/sinks.md."""

    url: SecretStr | None = None
    """Where messages are sent: https://host/path. An address of a private network is fine here."""
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    """The request's method."""
    forward_headers: tuple[str, ...] = ("*",)
    """Which of the message's own headers are passed on: names, a * at the end stands for any rest."""
    header_prefix: str = "Forebay-Meta-"
    """Put before the names of those, so that no producer can set a header that means something else."""

    @field_validator("header_prefix")
    @classmethod
    def _begins_a_name(cls, prefix: str) -> str:
        if prefix and not _TOKEN.fullmatch(prefix):
            raise ValueError(f"{prefix!r} is no beginning of a header's name; one is X-Meta-")
        return prefix

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        _check_login(self.url, self.headers)
        return self


class TargetSettings(RequestSettings):
    """A service whose requests are kept first: /v1/forward/<name>/… See docs/forwarding.md."""

    url: SecretStr
    """Where the service is: what comes behind /v1/forward/<name> is put behind it. An address of a private
    network is fine here."""
    queue: str | None = None
    """The queue that keeps its requests; made if it does not exist. None: the target's name."""
    wait: Seconds = 0.0
    """How long a sender is kept waiting for the service's own answer, at most 30 s; then it gets a 202, and
    can ask for the answer later."""
    methods: tuple[Method, ...] = ("POST", "PUT", "PATCH", "DELETE")
    """The methods that are taken; others are answered 405."""
    keep_headers: tuple[str, ...] = (
        "accept", "accept-language", "content-language", "content-disposition", "if-match",
        "x-request-id", "x-correlation-id",
    )  # fmt: skip
    """Headers of a request that are passed on, besides its Content-Type, Content-Encoding and trace context.
    Never credentials: those are in `headers`."""
    order: Literal["none", "key", "all"] = "none"
    """"all": requests are handed over one by one, in the order of acceptance. "key": those with the same
    Forebay-Ordering-Key are. One that fails holds back those behind it until it is done or dead."""
    max_answer_bytes: ByteCount = 65_536
    """Of a longer answer only the status and the headers are kept."""
    message_statuses: tuple[Status, ...] = (404, 405, 501)
    """Statuses that refuse the request for good, besides those of docs/sinks.md: here it is the sender who
    chose the path."""

    @field_validator("url")
    @classmethod
    def _is_a_base(cls, url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.query or parts.fragment:
            raise ValueError("it is the beginning of other URLs, and can have no ? and no #")
        return url

    @field_validator("wait")
    @classmethod
    def _is_short(cls, wait: float) -> float:
        if wait > MAX_WAIT:
            raise ValueError(f"it must be at most {MAX_WAIT:.0f}s")
        return wait

    @field_validator("keep_headers")
    @classmethod
    def _may_be_kept(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _TOKEN.fullmatch(name) or name.lower() in OURS:
                raise ValueError(f"{name!r} is no header that can be passed on")
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        _check_login(self.url, self.headers)
        return self

    def as_http(self) -> RelaySettings:
        """The `http` table of the target's queue."""
        shared = {name: getattr(self, name) for name in RequestSettings.model_fields}
        return RelaySettings(
            **shared,
            url=self.url,
            forward_headers=(*self.keep_headers, "traceparent", "tracestate", "ce-*"),
            header_prefix="",
            max_answer_bytes=self.max_answer_bytes,
        )


class RelaySettings(HttpSettings):
    """The `http` table of a queue whose messages are requests that were kept, made of a [forward] table."""

    max_answer_bytes: ByteCount
    """Of a longer answer only the status and the headers are kept."""


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


def _check_login(url: SecretStr | None, headers: tuple[Password, ...]) -> None:
    in_url = url is not None and urlsplit(url.get_secret_value()).username is not None
    if in_url and any(header_of(h)[0].lower() == "authorization" for h in headers):
        raise ValueError("url holds a user, and headers an Authorization; leave one of them out")


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
