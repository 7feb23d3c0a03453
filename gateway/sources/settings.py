"""The `[sources.<name>]` tables."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from forebay.section import Password, PositiveSeconds, Section
from gateway.headers import is_secret
from gateway.sources.recipe import Recipe, pieces_of
from gateway.sources.secrets import SecretEncoding, key_of

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")

PIECES = ("body", "timestamp", "id", "method", "path", "query")
"""What a described signature can be made over."""


class HmacSettings(Section):
    """How a service signs that is none of the named ones: `scheme = "hmac"`."""

    header: str | None = None
    """The header with the signature, such as "X-Shop-Signature"."""
    algorithm: Literal["sha256", "sha384", "sha512"] = "sha256"
    """The hash under the HMAC."""
    encoding: Literal["hex", "base64"] = "hex"
    """How the signature is written."""
    prefix: str = ""
    """What stands before the signature in the header, such as "sha256=" or "v0="."""
    field: str = ""
    """For a header of several named parts, "t=1700000000,v1=5257…": which of them is a signature."""
    signed: str = "{body}"
    """What is signed: text with {body}, {timestamp}, {id}, {method}, {path} and {query} in it."""
    timestamp_header: str | None = None
    """The header with the time of signing, in seconds or milliseconds since 1970. It must be in `signed`."""
    timestamp_field: str = ""
    """The same as a part of the signature's header: "t"."""
    id_header: str | None = None
    """The header with the event's id. Without an id a delivery that is sent again is another message."""
    id_pointer: str = ""
    """The event's id in a JSON body, such as "/id" or "/event/id"."""
    challenge_type: str = ""
    """JSON bodies of this `type` ask whether we are there: their `challenge` is the answer."""
    secret_encoding: SecretEncoding = "text"  # noqa: S105  # how it is written, not what
    """How the secrets are written."""

    @field_validator("header", "timestamp_header", "id_header")
    @classmethod
    def _a_header(cls, name: str | None) -> str | None:
        if name is not None and not _HEADER.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header; one is X-Shop-Signature")
        return name

    @field_validator("signed")
    @classmethod
    def _made_of_pieces(cls, text: str) -> str:
        known = ", ".join(f"{{{piece}}}" for piece in PIECES)
        try:
            found = [piece for _, piece in pieces_of(text) if piece is not None]
        except ValueError as error:
            raise ValueError(f"{error}; it is text with {known} in it, like {{timestamp}}.{{body}}") from None
        for piece in found:
            if piece not in PIECES:
                raise ValueError(f"there is no piece {{{piece}}}; there are {known}")
        if "body" not in found:
            raise ValueError("{body} is not in it: then any body would fit a signature")
        return text

    @field_validator("id_pointer")
    @classmethod
    def _a_pointer(cls, pointer: str) -> str:
        if pointer and not re.fullmatch(r"(/[^/]+)+", pointer):
            raise ValueError(f"{pointer!r} is no JSON pointer to a member; one is /event/id")
        return pointer

    @model_validator(mode="after")
    def _what_is_read_is_signed(self) -> Self:
        timed = self.timestamp_header is not None or bool(self.timestamp_field)
        signed = {piece for _, piece in pieces_of(self.signed)}
        if self.timestamp_field and not self.field:
            raise ValueError('timestamp_field needs field beside it, such as field = "v1"')
        if self.timestamp_field and self.timestamp_header is not None:
            raise ValueError("timestamp_field and timestamp_header are two places for one time; keep one")
        if timed != ("timestamp" in signed):
            raise ValueError(
                "the time is read from a header but not signed, so that anybody could change it;"
                ' signed = "{timestamp}.{body}", or what the service documents'
                if timed
                else "{timestamp} is signed, but nothing says where it is sent; set timestamp_header"
            )
        if "id" in signed and self.id_header is None:
            raise ValueError("{id} is signed, but nothing says where it is sent; set id_header")
        if self.id_header is not None and self.id_pointer:
            raise ValueError("id_header and id_pointer are two places for one id; keep one")
        if self.field and self.prefix:
            raise ValueError("prefix and field are two ways to find the signature; keep one")
        return self

    def recipe(self) -> Recipe:
        assert self.header is not None, "checked with the source"
        return Recipe(
            header=self.header.lower(),
            algorithm=self.algorithm,
            encoding=self.encoding,
            prefix=self.prefix,
            field=self.field,
            signed=self.signed,
            timestamp_header=(self.timestamp_header or "").lower(),
            timestamp_field=self.timestamp_field,
            id_header=(self.id_header or "").lower(),
            id_pointer=self.id_pointer,
            challenge_type=self.challenge_type,
            keep=(self.id_header.lower(),) if self.id_header else (),
        )


class SourceSettings(Section):
    """A service whose webhooks are taken at `/v1/sources/<name>`. Its signature is its credential."""

    scheme: Literal["standard", "stripe", "github", "hmac"]
    """How it signs: as Standard Webhooks says (also with Svix's names of the headers), as Stripe does, as
    GitHub does, or as `[sources.<name>.hmac]` describes."""
    queue: str
    """Where its deliveries go. The queue must be declared."""
    secrets: tuple[Password, ...] = Field(min_length=1)
    """The secrets that are valid now, separated by commas: while one is replaced, both of them."""
    tolerance: PositiveSeconds = 300.0
    """How far the time of signing may be off, where the scheme has one."""
    keep_headers: tuple[str, ...] = ()
    """Request headers kept with the message, besides those that name the event and its id."""
    hmac: HmacSettings = HmacSettings()
    """The description of `scheme = "hmac"`."""

    @field_validator("secrets", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            return value
        parts: list[object] = []
        for part in value:
            parts += re.split(r"[\s,]+", part.strip()) if isinstance(part, str) else [part]
        return tuple(part for part in parts if part != "")

    @field_validator("keep_headers")
    @classmethod
    def _may_be_kept(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if is_secret(name.lower()) or name.lower().startswith("forebay-") or not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is never kept: credentials and signatures stay out of the queue")
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.scheme == "hmac") != (self.hmac.header is not None):
            raise ValueError(
                'scheme "hmac" needs its description; at the least: hmac.header = "X-Shop-Signature"'
                if self.scheme == "hmac"
                else f'hmac describes scheme = "hmac", but the scheme is {self.scheme!r}'
            )
        for secret in self.secrets:
            key_of(secret, self.secret_encoding)
        return self

    @property
    def secret_encoding(self) -> SecretEncoding:
        if self.scheme == "hmac":
            return self.hmac.secret_encoding
        return "whsec" if self.scheme == "standard" else "text"


SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""The last part of the address that the service is given."""
