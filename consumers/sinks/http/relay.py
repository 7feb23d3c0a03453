"""Messages that are requests which were kept: sent as they came, and their answers kept in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from yarl import URL

from consumers.sinks.settings import OURS
from forebay.errors import MessageRejected
from forebay.forwarding import METHOD, METHODS, TARGET, checked_target, is_forwarded
from forebay.message import Message
from forebay.sinks import WriteResult
from forebay.storage.answers import KeptAnswer, keep

TAKEN = frozenset({303, 304})
"""Redirections that mean: the request was handled. The others ask for the same request elsewhere."""

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8_192

_NOT_KEPT = OURS - {"content-type", "content-encoding"} | {
    "date", "server", "via", "alt-svc", "strict-transport-security",
    # Of our session with the service, which is nobody else's.
    "set-cookie", "set-cookie2", "www-authenticate", "authentication-info",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Heard(WriteResult):
    """What became of a request, with the answer where it is one to keep."""

    answer: KeptAnswer | None = None


class Relay:
    """What one target makes of the messages in its queue."""

    def __init__(
        self,
        destination: str,
        base: str,
        *,
        max_answer_bytes: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._destination = destination
        self._base = str(URL(base)).rstrip("/")
        self._now = now
        self.max_answer_bytes = max_answer_bytes

    def takes(self, message: Message) -> bool:
        """Whether this message is a request; others, put into the queue directly, go to the base URL."""
        return is_forwarded(message.headers)

    def request_of(self, message: Message) -> tuple[str, URL]:
        """
        Method and URL, which is never outside of the base.

        Raises:
            MessageRejected: it would be, or this is no request that can be sent. The gateway lets none of
                these in, but others can write to a broker.
        """
        method = message.headers[METHOD]
        path, _, query = message.headers.get(TARGET, "").partition("?")
        try:
            target = checked_target(path, query)
        except ValueError as error:
            raise MessageRejected(f"not sent: {error}", error_class="not-a-request") from None
        if method not in METHODS:
            raise MessageRejected("not sent: its method cannot be forwarded", error_class="not-a-request")
        return method, URL(self._base + target, encoded=True)

    def heard(
        self, message: Message, status: int, headers: Mapping[str, str], body: bytes | None
    ) -> KeptAnswer:
        """The answer as it is kept; `body` None: it is too long, or broke off."""
        return KeptAnswer(
            id=message.id,
            destination=self._destination,
            status=status,
            headers=_kept(headers),
            body=body or b"",
            complete=body is not None,
            digest=hashlib.sha256(message.body).digest(),
            answered_at=self._now(),
        )


def keep_answers(connection: sa.Connection, results: Sequence[WriteResult]) -> None:
    """Keep the answers among `results`, in the transaction of `connection`."""
    heard = {r.answer.id: r.answer for r in results if isinstance(r, Heard) and r.answer is not None}
    keep(connection, list(heard.values()))


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    size = 0
    for name, value in headers.items():
        name = name.lower()
        size += len(name) + len(value)
        if name in _NOT_KEPT or name.startswith(("proxy-", "forebay-", "access-control-")):
            continue
        if size > MAX_HEADER_BYTES or len(kept) >= MAX_HEADERS or not value.isprintable():
            continue
        kept[name] = f"{kept[name]}, {value}" if name in kept else value
    return kept
