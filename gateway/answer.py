"""What the gateway says to a client: made by decisions, sent by whichever shell took the request."""

from __future__ import annotations

from forebay.brokers.api import Durability
from forebay.http_problems import Answer, RawHeaders

__all__ = ["Accepted", "AcceptedAnswers", "Answer", "RawHeaders"]

_JSON = (b"content-type", b"application/json")
_ID_LENGTH = 36
_BEGIN = b'{"id":"'
_LOCATION = b"/v1/messages/"


class Accepted:
    """The 202s that differ in nothing but the message's id."""

    __slots__ = ("_begin", "_headers", "_middle", "_tail")

    def __init__(self, queue: str, durability: Durability, duplicate: bool, asked: Durability | None) -> None:
        flag = "true" if duplicate else "false"
        self._tail = f'","queue":"{queue}","durability":"{durability}","duplicate":{flag}}}'.encode()
        length = b"%d" % (len(_BEGIN) + _ID_LENGTH + len(self._tail))
        self._headers: RawHeaders = [_JSON, (b"content-length", length)]
        self._begin = b"".join(b"%b: %b\r\n" % pair for pair in self._headers) + b"location: " + _LOCATION
        applied = () if asked is None else ((b"preference-applied", b"durability=" + asked.encode()),)
        self._middle = b"".join((b"\r\n", *(b"%b: %b\r\n" % pair for pair in applied), b"\r\n", _BEGIN))
        self._headers += applied

    def answer(self, message_id: str) -> Answer:
        """The answer for this message."""
        raw_id = message_id.encode()
        type_, length, *applied = self._headers
        headers = [type_, length, (b"location", _LOCATION + raw_id), *applied]
        return Answer(status=202, headers=headers, body=_BEGIN + raw_id + self._tail)

    def raw(self, message_id: str) -> bytes:
        """The same as it goes over the wire: the headers, an empty line and the body."""
        raw_id = message_id.encode()
        return b"".join((self._begin, raw_id, self._middle, raw_id, self._tail))


class AcceptedAnswers:
    """Makes the 202s; all but the id is prepared once per queue, durabilities and duplicate flag."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, Durability, bool, Durability | None], Accepted] = {}

    def of(self, queue: str, durability: Durability, duplicate: bool, asked: Durability | None) -> Accepted:
        made = self._made.get((queue, durability, duplicate, asked))
        if made is None:
            made = Accepted(queue, durability, duplicate, asked)
            self._made[queue, durability, duplicate, asked] = made
        return made
