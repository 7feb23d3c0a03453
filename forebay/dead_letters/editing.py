"""
Edit and send: a repaired body goes out as a new message, and the old one points to it.

The new id is made of the old one and the new body, so that the same edit, asked for again after
a crash or an unconfirmed publish, is the same message.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from forebay import ids
from forebay.dead_letters.sending import send_back
from forebay.errors import ForebayError
from forebay.storage import audit
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forebay.brokers.api import Publisher
    from forebay.storage.database import Database

LINEAGE_HEADER = "edited-from"
"""The header of the new message that names the old one."""


class CannotEdit(ForebayError):
    """What was asked for does not fit the dead letter. The text says what would."""


class EditNotSent(ForebayError):
    """The broker did not take the new message. The old one is dead as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A new body for one dead letter, not sent yet."""

    record: DeadLetterRecord
    """With its body."""
    body: bytes
    new_id: str

    @property
    def diff(self) -> str:
        """The two bodies against each other, in lines; empty where they are equal."""
        old, new = readable(self.record.body).splitlines(), readable(self.body).splitlines()
        return "\n".join(difflib.unified_diff(old, new, self.record.id, self.new_id, lineterm=""))


def plan(record: DeadLetterRecord, body: bytes) -> Edit:
    """
    What `send` would send.

    Raises:
        CannotEdit: the record is not dead, or the body is as it was.
    """
    new_id = ids.edited_id(record.id, record.destination, body)
    begun = record.status == "redriving" and record.edited_to == new_id
    if record.status != "dead" and not begun:
        after = f" as {record.edited_to}" if record.edited_to else ""
        raise CannotEdit(f"{record.id} is {record.status}{after}; only what is dead can be edited")
    if body == record.body:
        raise CannotEdit(f"the body of {record.id} would stay as it is; to send it so: redrive")
    return Edit(record=record, body=body, new_id=new_id)


def one(database: Database, id: str, destination: str | None = None) -> DeadLetterRecord:
    """
    The dead letter of this id, with its body, for `plan`.

    Raises:
        CannotEdit: there is none, or more than one.
    """
    found = DeadLetterStore(database).list(DeadLetterFilter(ids=[id]), limit=100, bodies=True)
    if len(found) > 1:
        # Also found are those that were sent with this id and rest under another.
        found = [r for r in found if r.id == id and destination in (None, r.destination)] or found
    if not found:
        raise CannotEdit(f"no dead letter {id} in the database")
    if len(found) > 1:
        which = ", ".join(f"{r.id} of {r.destination}" for r in found)
        raise CannotEdit(f"there are several dead letters {id}; choose one by id and destination: {which}")
    return found[0]


async def send(database: Database, publisher: Publisher, edit: Edit, *, by: str) -> None:
    """
    Send the new message to the queue that gave the old one up, and discard the old one.

    In between the old one is `redriving`: nobody else can send or edit it. A crash there leaves it
    so, and the same edit once more ends it.

    Raises:
        CannotEdit: somebody else was faster.
        EditNotSent.
    """
    store = DeadLetterStore(database)
    record = edit.record
    if record.status == "dead":
        taken = await asyncio.to_thread(
            store.take, [record], status="redriving", expected="dead", edited_to=edit.new_id,
            changed_by=by[:200], redrive_job=None, redriven_at=None,
        )  # fmt: skip
        if not taken:
            raise CannotEdit(f"{record.id} was sent, edited or discarded by somebody else just now")
    headers = {**record.headers, LINEAGE_HEADER: record.id}
    new = replace(record, id=edit.new_id, body=edit.body, headers=headers)
    sent = await send_back(publisher, [new])
    await asyncio.to_thread(_settle, database, store, edit, by, bool(sent.confirmed))
    if not sent.confirmed:
        raise EditNotSent(f"the edited message could not be sent ({sent.why}); {record.id} is dead as before")


def _settle(database: Database, store: DeadLetterStore, edit: Edit, by: str, confirmed: bool) -> None:
    if not confirmed:
        store.mark([edit.record], status="dead", expected="redriving", edited_to=None)
        return
    reason = f"edited, sent as {edit.new_id}"
    with database.begin() as connection:
        store.take(
            [edit.record], status="discarded", expected="redriving", connection=connection,
            discard_reason=reason, changed_by=by[:200],
        )  # fmt: skip
        audit.record(
            database, connection, who=by, action="edit", queue=edit.record.queue,
            selection={"ids": [edit.record.id]}, count=1, detail=reason,
        )  # fmt: skip


# ---- changing a JSON body


def with_values(body: bytes, changes: Sequence[tuple[str, Any]]) -> bytes:
    """
    `body`, which is JSON, with a value at each JSON pointer (RFC 6901) replaced or added.

    Its layout changes, its other values do not.

    Raises:
        CannotEdit: it is not JSON, the pointer's parent is not there, or a number or a repeated
            name in it would not survive.
    """
    try:
        document = json.loads(body, parse_float=_exact, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CannotEdit(
            f"the body is not JSON that can be changed by pointer ({error}); give all of it: --body-file"
        ) from None
    for pointer, value in changes:
        document = _with_value(document, pointer, value)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only escape
        return json.dumps(document, separators=(",", ":")).encode()


def _exact(text: str) -> float:
    value = float(text)
    if Decimal(repr(value)) != Decimal(text):
        raise ValueError(f"the number {text} would be changed to {value!r}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _with_value(document: Any, pointer: str, value: Any) -> Any:
    if pointer == "":
        return value
    if not pointer.startswith("/"):
        raise CannotEdit(f"{pointer!r} is not a JSON pointer; write /customer/name or /items/0")
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    place = document
    for name in parents:
        place = _child(place, name, pointer)
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last == "-":
        place.append(value)
    elif isinstance(place, list):
        place[_index(place, last, pointer)] = value
    else:
        raise CannotEdit(f"{pointer}: there is no object or array to set {last!r} in")
    return document


def _child(place: Any, name: str, pointer: str) -> Any:
    if isinstance(place, dict) and name in place:
        return place[name]
    if isinstance(place, list):
        return place[_index(place, name, pointer)]
    raise CannotEdit(f"{pointer}: there is no {name!r} in the body")


def _index(place: list[Any], name: str, pointer: str) -> int:
    if name.isascii() and name.isdigit() and int(name) < len(place):
        return int(name)
    raise CannotEdit(f"{pointer}: {name!r} is no place in an array of {len(place)}; `-` appends")


def readable(body: bytes) -> str:
    """The body for people: JSON indented, other text as it is, the rest as a hex dump of its beginning."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        lines = [body[i : i + 16].hex(" ") for i in range(0, min(len(body), 512), 16)]
        return "\n".join(lines + (["…"] if len(body) > 512 else []))
