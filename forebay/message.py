"""The one value that crosses the whole system: what a client sent and a sink stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import overload


@dataclass(slots=True, kw_only=True)
class Message:
    """
    An accepted message. Never changed in place; make a changed copy with `dataclasses.replace`.

    The class is not frozen because assigning fields of a frozen dataclass costs
    three times as much, and one of these is made per message on both sides.
    """

    id: str
    """A UUID in canonical form, unique per message; sinks deduplicate on it."""
    body: bytes = field(repr=False)
    """Opaque: stored and forwarded exactly as received."""
    accepted_at: datetime
    """When the gateway took responsibility for it. Timezone-aware, UTC."""
    key: str | None = None
    """The ordering key: equal keys keep their order on brokers whose `ordering` is "by_key"."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What the producer attached, under lower-case names; never credentials or cookies."""
    content_type: str = "application/octet-stream"
    not_before: datetime | None = None
    """Not delivered before this time (UTC). None: at once."""
    expires_at: datetime | None = None
    """Not worth delivering after this time (UTC); dead-lettered as `expired`. None: never."""


class Alike(Sequence[Message]):
    """
    Messages that differ in nothing but id and body, as two columns.

    There may be very many of them; whoever can do with the columns makes no objects of them. To
    everybody else it is a sequence like any other, of which the messages are made when they are asked for.
    """

    __slots__ = ("_made", "bodies", "common", "ids")

    def __init__(
        self,
        common: Message,
        ids: Sequence[str],
        bodies: Sequence[bytes],
        made: Sequence[Message] | None = None,
    ) -> None:
        """`made` are the messages, if they are there already."""
        self.common = common
        """What holds of all of them; its own id and body are nobody's."""
        self.ids = ids
        self.bodies = bodies
        self._made = made

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        if isinstance(index, int):
            return self._messages()[index]
        return Alike(self.common, self.ids[index], self.bodies[index])

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages())

    def _messages(self) -> Sequence[Message]:
        if self._made is None:
            of_all = self.common
            self._made = [
                usual_message(
                    message_id, body, of_all.accepted_at, of_all.key, of_all.headers, of_all.content_type
                )
                for message_id, body in zip(self.ids, self.bodies, strict=True)
            ]
            for made in self._made:
                made.not_before, made.expires_at = of_all.not_before, of_all.expires_at
        return self._made


def together(messages: Sequence[Message]) -> Sequence[Message]:
    """
    Messages that were just made and are now published together: as columns, if nothing but the time differs.

    Then they were all accepted when the last one was. To be called before anybody has seen them.
    """
    last = messages[-1]
    headers, content_type, key = last.headers, last.content_type, last.key
    for m in messages:
        if (
            m.key != key
            or m.content_type != content_type
            or (m.headers is not headers and m.headers != headers)
            or m.not_before is not None
            or m.expires_at is not None
        ):
            return messages
    at = last.accepted_at
    for m in messages:
        m.accepted_at = at
    common = usual_message("", b"", at, key, headers, content_type)
    return Alike(common, [m.id for m in messages], [m.body for m in messages], messages)


def ids_of(messages: Sequence[Message]) -> Sequence[str]:
    return messages.ids if isinstance(messages, Alike) else [m.id for m in messages]


def bodies_of(messages: Sequence[Message]) -> Sequence[bytes]:
    return messages.bodies if isinstance(messages, Alike) else [m.body for m in messages]


_new = object.__new__


def usual_message(
    id: str,
    body: bytes,
    accepted_at: datetime,
    key: str | None,
    headers: Mapping[str, str],
    content_type: str,
) -> Message:
    """
    A message without times of its own, as drivers read them by the thousand.

    Keyword arguments for a class are gathered in a dictionary first: this takes half the time.
    """
    made: Message = _new(Message)
    made.id = id
    made.body = body
    made.accepted_at = accepted_at
    made.key = key
    made.headers = headers
    made.content_type = content_type
    made.not_before = made.expires_at = None
    return made
