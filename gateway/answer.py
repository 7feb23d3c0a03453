"""What the gateway says to a client: made by decisions, sent by whichever shell took the request."""

from __future__ import annotations

from forebay.brokers.api import Durability
from forebay.http_problems import Answer, RawHeaders

__all__ = ["AcceptedAnswers", "Answer", "RawHeaders"]

_JSON = (b"content-type", b"application/json")
_ID_LENGTH = 36


class AcceptedAnswers:
    """Makes the 202s; all but the id is prepared once per queue, durability and duplicate flag."""

    def __init__(self) -> None:
        self._tails: dict[tuple[str, Durability, bool], tuple[bytes, tuple[bytes, bytes]]] = {}

    def make(
        self,
        queue: str,
        message_id: str,
        durability: Durability,
        *,
        duplicate: bool,
        asked: Durability | None,
    ) -> Answer:
        prepared = self._tails.get((queue, durability, duplicate))
        if prepared is None:
            prepared = self._prepare(queue, durability, duplicate)
        tail, length = prepared
        raw_id = message_id.encode()
        headers = [_JSON, length, (b"location", b"/v1/messages/" + raw_id)]
        if asked is not None:
            headers.append((b"preference-applied", b"durability=" + asked.encode()))
        return Answer(status=202, headers=headers, body=b'{"id":"' + raw_id + tail)

    def _prepare(
        self, queue: str, durability: Durability, duplicate: bool
    ) -> tuple[bytes, tuple[bytes, bytes]]:
        flag = "true" if duplicate else "false"
        tail = f'","queue":"{queue}","durability":"{durability}","duplicate":{flag}}}'.encode()
        length = len('{"id":"') + _ID_LENGTH + len(tail)
        prepared = self._tails[queue, durability, duplicate] = (
            tail,
            (b"content-length", str(length).encode()),
        )
        return prepared
