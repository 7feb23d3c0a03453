"""Dead letters as JSON: for --json, the export and the admin API, without loss."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from typing import Any

import orjson

from forebay.dead_letters.sending import pages
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore

EXPORT_PAGE = 100


def as_json(record: DeadLetterRecord, *, body: bool) -> dict[str, Any]:
    """
    The record as JSON has it, times as datetimes.

    With `body` also what may hold values of the message: the destination's own words, and the
    body, as text in `body` where it is UTF-8, else in `body_base64`: its exact bytes either way.
    """
    value = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    value["history"] = record.history or []
    del value["body"]
    if not body:
        del value["detail"]
        return value
    try:
        value["body"] = record.body.decode()
    except UnicodeDecodeError:
        value["body_base64"] = base64.b64encode(record.body).decode()
    return value


def export(store: DeadLetterStore, which: DeadLetterFilter) -> Iterator[bytes]:
    """One line of NDJSON per dead letter, the oldest first; a page at a time is in memory."""
    for page in pages(store, which, size=EXPORT_PAGE, bodies=True):
        for record in page:
            yield orjson.dumps(as_json(record, body=True), option=orjson.OPT_APPEND_NEWLINE)
