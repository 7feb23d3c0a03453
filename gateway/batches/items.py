"""What an item of a batch says, in each of the forms that a batch may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from forebay.ids import id_from_key, ids_from_keys, new_id, new_ids
from forebay.message import Alike, Message
from gateway.batches.publishing import Chunk, unknown_code
from gateway.batches.results import NO_ID, Results, Span
from gateway.batches.splitting import Elements, Item, Lines, Splitter
from gateway.cloudevents import BATCH, event_of
from gateway.entrance import Ticket
from gateway.headers import Meta, Refused, due_times, override
from gateway.json_text import from_base64, raw_member
from gateway.problems import BODY_TOO_LARGE, INVALID_ITEM, KINDS, problem
from gateway.schemas import Schema

NO_ROOM = "The gateway holds as many bytes in memory as it may; this item was not stored."

Read = Callable[[bytes, Meta], tuple[bytes, Meta]]
"""The body in an item, and what is known about it; given what the request's headers say of all items."""


def invalid_item(detail: str) -> Refused:
    return Refused(problem(INVALID_ITEM, detail))


def _as_json(item: bytes, meta: Meta) -> tuple[bytes, Meta]:
    try:
        orjson.loads(item)
    except orjson.JSONDecodeError as error:
        raise invalid_item(f"The element is not JSON: {error}.") from None
    return item, meta


_MEMBERS = frozenset(
    {
        "body", "body_base64", "idempotency_key", "ordering_key", "content_type", "headers", "delay", "ttl",
    }
)  # fmt: skip


def _described(item: bytes, meta: Meta) -> tuple[bytes, Meta]:
    """One line of application/vnd.forebay.batch+ndjson."""
    try:
        said = orjson.loads(item)
    except orjson.JSONDecodeError as error:
        raise invalid_item(f"The line is not JSON: {error}.") from None
    if not isinstance(said, dict):
        raise invalid_item('The line is not a JSON object, like: {"body": {"order": 1}}')
    if not said.keys() <= _MEMBERS:
        unknown = min(said.keys() - _MEMBERS)[:50]
        raise invalid_item(f"No member is called “{unknown}”; there are {', '.join(sorted(_MEMBERS))}.")
    if ("body" in said) == ("body_base64" in said):
        raise invalid_item("One of “body” and “body_base64” is needed, and only one.")
    if "body" in said:
        body = raw_member(item, "body")
        kind = "application/json"
    else:
        try:
            body = from_base64(said["body_base64"])
        except ValueError:
            raise invalid_item("“body_base64” is not base64 text.") from None
        kind = "application/octet-stream"
    headers = said.get("headers") or {}
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise invalid_item("“headers” is not an object whose values are texts.")
    return body, override(
        meta,
        content_type=_text(said, "content_type") or kind,
        idempotency_key=_text(said, "idempotency_key"),
        ordering_key=_text(said, "ordering_key"),
        delay=_seconds(said, "delay"),
        ttl=_seconds(said, "ttl"),
        headers=headers,
    )


def _text(said: Mapping[str, Any], member: str) -> str | None:
    value = said.get(member)
    if value is not None and not isinstance(value, str):
        raise invalid_item(f"“{member}” is not a text.")
    return value


def _seconds(said: Mapping[str, Any], member: str) -> str | None:
    """A duration as a header would have it."""
    value = said.get(member)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_item(f"“{member}” is neither a number of seconds nor a text like “30s”.")
    return repr(value)


class Form:
    """One form of a batch: how its body is cut, and what an item of it says."""

    def __init__(
        self,
        cut: Callable[[int], Splitter],
        read: Read | None,
        *,
        room: Callable[[int], int] = int,
        orders: bool = False,
    ) -> None:
        self._cut = cut
        self._room = room
        self.read = read
        """None: the item is the body."""
        self.orders = orders
        """Items may have ordering keys of their own."""

    def splitter(self, max_body_bytes: int) -> Splitter:
        return self._cut(self._room(max_body_bytes))


def _with_envelope(max_body_bytes: int) -> int:
    """Room for the largest body in base64, and what is said of it."""
    return max_body_bytes * 4 // 3 + 64 * 2**10


_LINES = Form(Lines, None)

FORMS: dict[str, Form] = {
    "application/x-ndjson": _LINES,
    "application/ndjson": _LINES,
    "application/jsonl": _LINES,
    "application/x-jsonl": _LINES,
    "application/jsonlines": _LINES,
    "application/x-jsonlines": _LINES,
    "application/json": Form(Elements, _as_json),
    BATCH: Form(Elements, event_of, room=_with_envelope),
    "application/vnd.forebay.batch+ndjson": Form(Lines, _described, room=_with_envelope, orders=True),
}
"""By content type, without parameters."""


class Maker:
    """Makes the messages of one batch's items."""

    def __init__(
        self,
        form: Form,
        ticket: Ticket,
        results: Results,
        *,
        max_body_bytes: int,
        schema: Schema | None = None,
    ) -> None:
        self._read = form.read
        self._queue = ticket.queue
        self._tenant = ticket.caller.tenant
        self._meta = ticket.meta
        self._meta.content_type = "application/json"
        self._results = results
        self._limit = max_body_bytes
        self._schema = schema
        self._unknown = unknown_code(results)

    def chunk(self, first: int, items: list[Item], size: int) -> Chunk:
        """The messages of items in a row, of which `first` is the number of the first."""
        if self._read is None and self._schema is None and set(map(type, items)) == {bytes}:
            return self._plain(first, items, size)  # type: ignore[arg-type]  # all bytes
        ids: list[str] = []
        codes = bytearray()
        messages: list[Message] = []
        places: list[int] = []
        keyed: set[int] = set()
        now = datetime.now(UTC)
        for place, item in enumerate(items):
            try:
                message, has_key = self._message(first + place, item, now)
            except Refused as refused:
                said = orjson.loads(refused.answer.body)
                ids.append(NO_ID)
                codes.append(self._results.failed(KINDS[refused.answer.problem], said["detail"]))
                continue
            ids.append(message.id)
            codes.append(self._unknown)
            messages.append(message)
            places.append(place)
            if has_key:
                keyed.add(place)
        span = Span(first, "".join(ids), codes)
        return Chunk(span, messages, places, keyed, size, accepted_at=now)

    def _message(self, number: int, item: Item, now: datetime) -> tuple[Message, bool]:
        """
        Raises:
            Refused
        """
        if not isinstance(item, bytes):
            raise self._too_large() if item is BODY_TOO_LARGE else Refused(problem(item, NO_ROOM))
        body, meta = (item, self._meta) if self._read is None else self._read(item, self._meta)
        if len(body) > self._limit:
            raise self._too_large()
        if self._schema is not None and (refusal := self._schema.refusal(body)) is not None:
            raise Refused(refusal)
        key = meta.idempotency_key
        if key is not None and key is self._meta.idempotency_key:
            key = f"{key}/{number}"
        not_before, expires_at = due_times(meta, now)
        message = Message(
            id=new_id() if key is None else id_from_key(self._tenant, self._queue, key),
            body=body,
            accepted_at=now,
            key=meta.ordering_key,
            headers=meta.kept,
            content_type=meta.content_type,
            not_before=not_before,
            expires_at=expires_at,
        )
        return message, key is not None

    def _plain(self, first: int, items: Sequence[bytes], size: int) -> Chunk:
        """The same for items that are bodies, all alike, of which there may be very many."""
        meta = self._meta
        now = datetime.now(UTC)
        not_before, expires_at = due_times(meta, now)
        count = len(items)
        key = meta.idempotency_key
        if key is None:
            ids = new_ids(count)
        else:
            ids = ids_from_keys(self._tenant, self._queue, key, range(first, first + count))
        common = Message(
            id="",
            body=b"",
            accepted_at=now,
            key=meta.ordering_key,
            headers=meta.kept,
            content_type=meta.content_type,
            not_before=not_before,
            expires_at=expires_at,
        )
        span = Span(first, "".join(ids), bytearray((self._unknown,)) * count)
        places = range(count)
        return Chunk(
            span, Alike(common, ids, items), places, places if key is not None else (), size, accepted_at=now
        )

    def _too_large(self) -> Refused:
        return Refused(
            problem(
                BODY_TOO_LARGE,
                f"The item is too large: a body may have at most {self._limit} bytes.",
                limit=self._limit,
            )
        )
