"""The headers of a request. Pure: nothing that a message holds can end a header or begin another."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from urllib.parse import quote

from multidict import CIMultiDict

from consumers.sinks.settings import OURS, HttpSettings, header_of, secret_bytes
from forebay import __version__
from forebay.brokers.api import Delivery
from forebay.forwarding import is_forwarded

_MEDIA_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]*")
_NOT_IN_NAMES = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")


class Headers:
    """Makes the headers of requests, as one queue's settings say."""

    def __init__(self, settings: HttpSettings) -> None:
        self._static: CIMultiDict[str] = CIMultiDict([("User-Agent", f"forebay/{__version__}")])
        own: CIMultiDict[str] = CIMultiDict(header_of(line) for line in settings.headers)
        self._static.update(own)
        self._named = {name.lower() for name in own}
        self._prefix = settings.header_prefix
        self._id_header = settings.idempotency_header
        self._wanted = _Patterns(settings.forward_headers)
        self._secrets = [secret_bytes(secret) for secret in settings.signing_secrets]

    @property
    def static(self) -> CIMultiDict[str]:
        """What every request to the configured service has, the probe's too."""
        return self._static.copy()

    def of(self, delivery: Delivery, *, timestamp: int, ours: bool = True) -> CIMultiDict[str]:
        """
        The headers for one message; `timestamp` is the time of sending, in whole seconds.

        Without `ours` the request goes to another host than the configured one: the
        static headers, which may hold its credentials, stay behind.
        """
        message = delivery.message
        headers: CIMultiDict[str] = CIMultiDict()
        for name, text in message.headers.items():
            full = self._prefix + _name(name)
            if self._wanted.match(name) and not self._taken(full):
                headers[full] = value(text)
        if ours:
            headers.update(self._static)
        forwarded = is_forwarded(message.headers)
        if not forwarded or message.body or message.content_type != "application/octet-stream":
            headers["Content-Type"] = _content_type(message.content_type)
        if forwarded and "content-encoding" in message.headers:
            headers["Content-Encoding"] = value(message.headers["content-encoding"])
        headers[self._id_header] = message.id
        headers["Forebay-Message-Id"] = message.id
        headers["Forebay-Attempt"] = str(delivery.attempt)
        headers["Forebay-Queue"] = delivery.queue
        headers["Forebay-Accepted-At"] = message.accepted_at.isoformat()
        if message.key is not None:
            headers["Forebay-Ordering-Key"] = value(message.key)
        if self._secrets:
            headers["webhook-id"] = message.id
            headers["webhook-timestamp"] = str(timestamp)
            headers["webhook-signature"] = " ".join(
                signature(secret, message.id, timestamp, message.body) for secret in self._secrets
            )
        return headers

    def _taken(self, name: str) -> bool:
        """Whether the name means something else than "the producer said so"."""
        name = name.lower()
        if name in OURS or name in self._named or name == self._id_header.lower():
            return True
        # Behind a prefix of the operator's choice a name is nobody else's, even this one.
        if self._prefix:
            return False
        return name.startswith(("forebay-", "webhook-", "proxy-", "x-forwarded-")) or name in _NOBODYS


_NOBODYS = frozenset({
    "accept-encoding", "authorization", "cookie", "forwarded", "idempotency-key", "user-agent", "x-real-ip",
})  # fmt: skip


class _Patterns:
    def __init__(self, patterns: Iterable[str]) -> None:
        texts = [pattern.strip().lower() for pattern in patterns]
        self._exact = {t for t in texts if not t.endswith("*")}
        self._begins = tuple(t[:-1] for t in texts if t.endswith("*"))

    def match(self, name: str) -> bool:
        return name in self._exact or name.startswith(self._begins)


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature of Standard Webhooks 1.0, over the bytes of the body, whatever they are."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def value(text: str) -> str:
    """
    `text` as a header's value: as it is, in UTF-8, if it can be one.

    What a header cannot carry (control characters, lone surrogates, spaces at the ends)
    makes it an extended value of RFC 8187, which says so by its first characters.
    """
    if text.isprintable() and text == text.strip():
        return text
    return "UTF-8''" + quote(text.encode("utf-8", "surrogatepass"), safe="")


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub(lambda m: quote(m[0].encode("utf-8", "surrogatepass"), safe=""), text)


def _content_type(text: str) -> str:
    return text if _MEDIA_TYPE.fullmatch(text) else "application/octet-stream"
