"""
How deliveries are signed, as data, and the one place that checks a signature.

Sources of the named schemes:

- Standard Webhooks 1.0, https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md:
  base64 of HMAC-SHA256 over "{id}.{timestamp}.{body}"; a list of "v1,<signature>", other versions among
  them (asymmetric "v1a"). Svix sends the same under names of its own.
- Stripe, https://docs.stripe.com/webhooks#verify-manually: "t=<time>,v1=<hex>,v1=<hex>,v0=<hex>" over
  "{timestamp}.{body}"; the secret is used as text, its "whsec_" included; v0 is for tests.
- GitHub, https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries:
  "sha256=<hex>" over the body; neither time nor id is signed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Check = Literal["missing", "malformed", "wrong", "expired"]
"""What was the matter with a delivery; for the log and the figures, never for the sender."""

MAX_SIGNATURES = 16
"""In one header. While secrets are replaced there are two or three."""

_TIME = re.compile(r"[0-9]{1,13}")
_MILLISECONDS = 10**11
"""A time above this is in milliseconds: in seconds it would be in the year 5138."""


@functools.cache
def pieces_of(signed: str) -> tuple[tuple[str, str | None], ...]:
    """
    Text, and the piece that follows it, of "{timestamp}.{body}".

    Raises:
        ValueError: a brace that is not closed, or something else than a name in it.
    """
    found = []
    for text, name, spec, conversion in string.Formatter().parse(signed):
        if spec or conversion:
            raise ValueError(f"{{{name}}} has more than a name in it")
        found.append((text, name))
    return tuple(found)


class Unverified(Exception):
    """The delivery is not shown to come from the source; `check` says which check failed."""

    def __init__(self, check: Check, why: str) -> None:
        super().__init__(why)
        self.check = check


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request of a source, as it came."""

    headers: Mapping[str, str]
    """Names in lower case; what was sent more than once, joined by commas."""
    body: bytes
    method: str = "POST"
    path: str = ""
    query: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Where the signature is, how it is written, and what it is made over."""

    header: str
    algorithm: Literal["sha256", "sha384", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    """What stands before each signature; signatures are separated by spaces. What has another is ignored."""
    field: str = ""
    """The header is a list of name=value, separated by commas or semicolons; this one is a signature."""
    signed: str = "{body}"
    timestamp_header: str = ""
    timestamp_field: str = ""
    id_header: str = ""
    id_pointer: str = ""
    challenge_type: str = ""
    ping: tuple[str, str] | None = None
    """A header and its value in deliveries that only try the line."""
    keep: tuple[str, ...] = ()
    """Headers that tell what the event is."""

    def signs(self, piece: str) -> bool:
        return any(name == piece for _, name in pieces_of(self.signed))

    def verify(self, delivery: Delivery, keys: Sequence[bytes], *, now: float, tolerance: float) -> None:
        """
        Return if one of `keys` made a signature of the delivery, and not too long ago.

        `now` is in seconds since 1970. The time is looked at last: "expired" means that the
        signature itself is right.

        Raises:
            Unverified.
        """
        signatures, fields = self._signatures(delivery)
        timestamp = self._timestamp(delivery, fields)
        pieces = {
            "timestamp": timestamp,
            "id": self._header(delivery, self.id_header) if self.signs("id") else "",
            "method": delivery.method,
            "path": delivery.path,
            "query": delivery.query,
        }
        content = self._content(pieces, delivery.body)
        right = [hmac.digest(key, content, self.algorithm) for key in keys]
        # All with all: how long it takes tells nothing of which fits.
        if not sum(hmac.compare_digest(a, b) for a in right for b in signatures):
            raise Unverified("wrong", f"no signature in {self.header} is by one of the {len(keys)} secrets")
        if timestamp and (off := abs(now - _seconds(timestamp))) > tolerance:
            raise Unverified("expired", f"signed {off:.0f} s away from this host's time")

    def _content(self, pieces: Mapping[str, str], body: bytes) -> bytes:
        made: list[bytes] = []
        for text, piece in pieces_of(self.signed):
            made.append(text.encode())
            if piece == "body":
                made.append(body)
            elif piece is not None:
                made.append(pieces[piece].encode("latin-1"))
        return b"".join(made)

    def _header(self, delivery: Delivery, name: str) -> str:
        value = delivery.headers.get(name, "")
        if not value:
            raise Unverified("missing", f"there is no {name}")
        return value

    def _signatures(self, delivery: Delivery) -> tuple[list[bytes], list[tuple[str, str]]]:
        text = self._header(delivery, self.header)
        fields: list[tuple[str, str]] = []
        if self.field:
            for part in re.split(r"[,;]", text):
                name, _, value = part.strip().partition("=")
                fields.append((name, value))
            written = [value for name, value in fields if name == self.field]
        else:
            written = [w.removeprefix(self.prefix) for w in text.split() if w.startswith(self.prefix)]
        if not written or len(written) > MAX_SIGNATURES:
            raise Unverified("malformed", f"{self.header} holds {len(written)} signatures that we know")
        return [_decoded(w, self.encoding) for w in written], fields

    def _timestamp(self, delivery: Delivery, fields: list[tuple[str, str]]) -> str:
        if self.timestamp_header:
            text = self._header(delivery, self.timestamp_header)
        elif self.timestamp_field:
            text = next((value for name, value in fields if name == self.timestamp_field), "")
        else:
            return ""
        if not _TIME.fullmatch(text):
            raise Unverified("malformed", "the time of signing is no number of seconds since 1970")
        return text


def _decoded(text: str, encoding: str) -> bytes:
    """The bytes of a signature; none, which fits nothing, if it is not written so."""
    try:
        if encoding == "hex":
            return binascii.unhexlify(text)
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _seconds(timestamp: str) -> float:
    time = int(timestamp)
    return time / 1000 if time > _MILLISECONDS else float(time)


def _standard(family: str) -> Recipe:
    return Recipe(
        header=f"{family}-signature",
        encoding="base64",
        prefix="v1,",
        signed="{id}.{timestamp}.{body}",
        timestamp_header=f"{family}-timestamp",
        id_header=f"{family}-id",
        keep=(f"{family}-id", f"{family}-timestamp"),
    )


NAMED: Mapping[str, tuple[Recipe, ...]] = {
    "standard": (_standard("webhook"), _standard("svix")),
    "stripe": (
        Recipe(
            header="stripe-signature",
            field="v1",
            signed="{timestamp}.{body}",
            timestamp_field="t",
            id_pointer="/id",
        ),
    ),
    "github": (
        Recipe(
            header="x-hub-signature-256",
            prefix="sha256=",
            id_header="x-github-delivery",
            ping=("x-github-event", "ping"),
            keep=("x-github-event", "x-github-delivery"),
        ),
    ),
}
"""The first whose header is there is the one."""
