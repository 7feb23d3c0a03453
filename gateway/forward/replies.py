"""A service's own answer, as it is given to who sent the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.answer import Answer

if TYPE_CHECKING:
    from forebay.storage.answers import KeptAnswer

MESSAGE_ID = b"forebay-message-id"

_WITHOUT_BODY = frozenset({204, 304})


def reply(kept: KeptAnswer, *, head: bool = False, replayed: bool = False) -> Answer:
    """
    The service's status, headers and body, with the message's id.

    `head`: it answers a HEAD, whose length says nothing of a body. `replayed`: it was given before.
    """
    headers = [(name.encode("latin-1", "replace"), value.encode()) for name, value in kept.headers.items()]
    headers.append((MESSAGE_ID, kept.id.encode()))
    if replayed:
        headers.append((b"idempotent-replayed", b"true"))
    if not head and kept.status not in _WITHOUT_BODY:
        headers.append((b"content-length", str(len(kept.body)).encode()))
    return Answer(status=kept.status, headers=headers, body=kept.body)
