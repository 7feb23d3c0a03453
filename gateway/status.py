"""What became of a message: the database's word, and this process's memory until it has one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Receive

from forebay.ids import canonical
from gateway.answer import Answer, RawHeaders
from gateway.asking import NoAnswer, Questions
from gateway.callers import ANYONE, Caller
from gateway.forward.replies import reply
from gateway.headers import Refused, wait_of
from gateway.problems import INVALID_REQUEST, NO_ANSWER, NOT_SEEN_YET, STATUS_UNAVAILABLE, problem
from gateway.recent import Accepted, RecentIds
from gateway.waiting import OVER, Waiting, Wanted, applied

if TYPE_CHECKING:
    from forebay.storage.answers import KeptAnswer
    from forebay.storage.database import Database
    from forebay.storage.states import MessageStatus


class StatusLookup:
    """Answers GET /v1/messages/{id}."""

    def __init__(self, questions: Questions, recent: RecentIds, waiting: Waiting) -> None:
        self._questions = questions
        self._recent = recent
        self._waiting = waiting

    async def answer(
        self, text: str, headers: RawHeaders, receive: Receive, caller: Caller = ANYONE
    ) -> Answer:
        """
        The message's state, if the caller may use its queue.

        If not, nothing is known of it: whether an id is in use is nobody else's business.
        """
        message_id = canonical(text)
        if message_id is None:
            return _no_id()
        try:
            wait = wait_of(headers)
        except Refused as refused:
            return refused.answer
        accepted = self._recent.get(message_id)
        if accepted is not None and not caller.may_use(accepted.queue):
            accepted = None
        try:
            found = await self._questions.ask(lambda database: _query(database, message_id))
        except NoAnswer as error:
            seen = " This gateway accepted the message lately." if accepted is not None else ""
            return problem(
                STATUS_UNAVAILABLE,
                f"The message's state is in the database: {error}.{seen}",
                id=message_id,
                # What is not known here another gateway may have accepted.
                accepted=True if accepted is not None else None,
            )
        if found is not None and not _may_see(caller, found, accepted):
            return _answer(message_id, None, None)
        if not wait or not self._waiting.takes_more or (found is not None and found.state in OVER):
            return _answer(message_id, found, accepted)
        try:
            told = await self._waiting.outcome(Wanted(message_id), wait, receive)
            found = found if told is None else told.status
        except asyncio.CancelledError:
            wait = 0.0  # the server stops: what is known is still true
        if found is not None and not _may_see(caller, found, accepted):
            found = None
        answer = _answer(message_id, found, accepted)
        if wait:
            answer.headers.append((b"preference-applied", applied(wait, answer)))
        return answer

    async def kept_answer(self, text: str, caller: Caller = ANYONE) -> Answer:
        """What a service answered to the forwarded request of this id."""
        message_id = canonical(text)
        if message_id is None:
            return _no_id()
        try:
            found = await self._questions.ask(lambda database: _query_answer(database, message_id))
        except NoAnswer as error:
            return problem(STATUS_UNAVAILABLE, f"The answer is in the database: {error}.", id=message_id)
        if found is not None and not caller.may_use(found.queue):
            found = None
        if found is None or not found.complete:
            return problem(
                NO_ANSWER,
                NO_ANSWER.advice if found is None else "The service answered, with more than is kept.",
                id=message_id,
            )
        answer = reply(found)
        # Whatever the service may have sent, it is not ours, and no page of this address.
        answer.headers += [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox")]
        return answer


def _no_id() -> Answer:
    return problem(INVALID_REQUEST, "A message id is a UUID, like: 01890a5d-ac96-774b-bcce-b302099a8057")


def _may_see(caller: Caller, found: MessageStatus, accepted: Accepted | None) -> bool:
    """
    Whether the caller may use the message's queue.

    Of what is `done` in a mapped table nobody knows the queue any more: that is shown to keys for all
    queues, and by the gateway that remembers it (`accepted`).
    """
    if found.queue is None:
        return accepted is not None or caller.may_use_all
    return caller.may_use(found.queue)


def _answer(message_id: str, found: MessageStatus | None, accepted: Accepted | None) -> Answer:
    if found is not None:
        document = {n: v for n, v in dataclasses.asdict(found).items() if v is not None}
        document["timeline"] = [
            {n: v for n, v in event.items() if v is not None} for event in document["timeline"]
        ]
        if found.answer is not None:
            document["answer"]["href"] = f"/v1/messages/{message_id}/answer"
        if accepted is not None:
            document.setdefault("queue", accepted.queue)
            document.setdefault("accepted_at", accepted.at)
            document["timeline"] = [
                _accepted(accepted),
                *(event for event in document["timeline"] if event["state"] != "accepted"),
            ]
        return _json(document)
    if accepted is not None:
        return _json(
            {
                "id": message_id,
                "state": "journaled" if accepted.durability == "journaled" else "accepted",
                "queue": accepted.queue,
                "durability": accepted.durability,
                "accepted_at": accepted.at,
                "timeline": [_accepted(accepted)],
            }
        )
    return problem(NOT_SEEN_YET, NOT_SEEN_YET.advice, id=message_id)


def _accepted(accepted: Accepted) -> dict[str, Any]:
    return {"state": "accepted", "at": accepted.at, "durability": accepted.durability}


def _query(database: Database, message_id: str) -> MessageStatus | None:
    # Only here: a gateway without a database loads nothing of it.
    from forebay.storage.states import message_status

    return message_status(database, message_id)


def _query_answer(database: Database, message_id: str) -> KeptAnswer | None:
    from forebay.storage.answers import answers_to

    return answers_to(database, [message_id]).get(message_id)


def _json(document: dict[str, Any]) -> Answer:
    body = orjson.dumps(document)
    return Answer(
        status=200,
        headers=[(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        body=body,
    )
