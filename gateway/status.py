"""What became of a message: the database's word, and this process's memory until it has one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from forebay.ids import canonical
from gateway.answer import Answer
from gateway.asking import NoAnswer, Questions
from gateway.problems import INVALID_REQUEST, NOT_SEEN_YET, STATUS_UNAVAILABLE, problem
from gateway.recent import RecentIds

if TYPE_CHECKING:
    from forebay.storage.database import Database


class StatusLookup:
    """Answers GET /v1/messages/{id}."""

    def __init__(self, questions: Questions, recent: RecentIds) -> None:
        self._questions = questions
        self._recent = recent

    async def answer(self, text: str) -> Answer:
        message_id = canonical(text)
        if message_id is None:
            return problem(
                INVALID_REQUEST, "A message id is a UUID, like: 01890a5d-ac96-774b-bcce-b302099a8057"
            )
        accepted = self._recent.get(message_id)
        try:
            found = await self._questions.ask(lambda database: _query(database, message_id))
        except NoAnswer as error:
            seen = " This gateway accepted the message lately." if accepted is not None else ""
            return problem(
                STATUS_UNAVAILABLE,
                f"The message's state is in the database: {error}.{seen}",
                id=message_id,
                accepted=accepted is not None,
            )
        if found is not None:
            return _json(found)
        if accepted is not None:
            queue, accepted_at = accepted
            return _json({"id": message_id, "state": "accepted", "queue": queue, "accepted_at": accepted_at})
        return problem(NOT_SEEN_YET, NOT_SEEN_YET.advice, id=message_id)


def _query(database: Database, message_id: str) -> dict[str, object] | None:
    # Only here: a gateway without a database loads nothing of it.
    from forebay.storage.queries import message_status

    found = message_status(database, message_id)
    if found is None:
        return None
    return {n: v for n, v in dataclasses.asdict(found).items() if v is not None}


def _json(document: dict[str, Any]) -> Answer:
    body = orjson.dumps(document)
    return Answer(
        status=200,
        headers=[(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        body=body,
    )
