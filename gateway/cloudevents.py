"""
CloudEvents 1.0 in requests: the HTTP binding's binary and structured modes, and the JSON format.

Whatever the mode, the attributes are kept as `ce-<name>` headers with the values that binary mode
would have, the event's data is the body, and `datacontenttype` the message's content type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from forebay.brokers.cloudevents import AS_IT_IS
from gateway.headers import Meta, Refused, override
from gateway.json_text import from_base64, raw_member
from gateway.problems import INVALID_EVENT, problem

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile(r"[a-z0-9]{1,100}")


def invalid_event(detail: str) -> Refused:
    return Refused(problem(INVALID_EVENT, detail))


def concerns(meta: Meta) -> bool:
    """Whether `understand` could do anything with a request of these headers, whatever its body."""
    kind = meta.content_type.partition(";")[0].strip().lower()
    return kind in (STRUCTURED, BATCH) or "ce-specversion" in meta.kept


def understand(body: bytes, meta: Meta) -> tuple[bytes, Meta]:
    """
    The data and the attributes, where the request is an event; anything else as it is.

    Raises:
        Refused: it says it is an event, and is none.
    """
    kind = meta.content_type.partition(";")[0].strip().lower()
    if kind == STRUCTURED:
        return event_of(body, meta)
    if kind == BATCH:
        raise invalid_event("A batch of events goes to /v1/queues/{queue}/batch. Nothing was stored.")
    if "ce-specversion" in meta.kept:
        check(meta.kept)
        _identify(meta)
    return body, meta


def check(kept: Mapping[str, str]) -> None:
    """
    Whether these headers have what an event needs.

    Raises:
        Refused
    """
    version = kept.get("ce-specversion", "")
    if version != "1.0":
        raise invalid_event(f"specversion: only “1.0” is taken, not “{version[:20]}”.")
    for name in REQUIRED:
        if not kept.get(f"ce-{name}"):
            raise invalid_event(f"{name}: missing or empty; an event needs {', '.join(REQUIRED)}.")


def _identify(meta: Meta) -> None:
    """
    Source and id name an event: sent again it is the same one (CloudEvents 1.0, section 3.1).

    So they are its idempotency key, if the request has none. The spaces keep it apart from keys of
    others, which have none.
    """
    if meta.idempotency_key is None:
        meta.idempotency_key = f"cloudevents {meta.kept['ce-source']} {meta.kept['ce-id']}"


def event_of(text: bytes, meta: Meta) -> tuple[bytes, Meta]:
    """
    The data and the attributes of an event in the JSON format.

    `data` that is JSON is taken with the bytes as they stand in the text; where `datacontenttype` says that
    it is not JSON, a text is taken for what it says (JSON format, section 3.1).

    Raises:
        Refused
    """
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid_event(f"The event is not JSON: {error}.") from None
    if not isinstance(said, dict):
        raise invalid_event("The event is not a JSON object.")
    attributes = {n: v for n, v in said.items() if n not in ("data", "data_base64") and v is not None}
    kind = attributes.pop("datacontenttype", "application/json")
    if not isinstance(kind, str):
        raise invalid_event("datacontenttype: not a text.")
    if "data" in said and "data_base64" in said:
        raise invalid_event("data: there is “data_base64” too; an event has one of them.")
    if "data_base64" in said:
        try:
            body = from_base64(said["data_base64"])
        except ValueError:
            raise invalid_event("data_base64: not base64 text.") from None
    elif "data" not in said:
        body = b""
    elif isinstance(said["data"], str) and not is_json(kind):
        body = said["data"].encode()
    else:
        body = raw_member(text, "data")
    headers = {f"ce-{name}": _in_a_header(name, value) for name, value in attributes.items()}
    check(headers)
    found = override(meta, content_type=kind, kept=headers)
    _identify(found)
    return body, found


def is_json(content_type: str) -> bool:
    """Whether the data is JSON (JSON format, section 3.1): `*/json` or `*/*+json`."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.endswith(("/json", "+json"))


def _in_a_header(name: str, value: Any) -> str:
    """An attribute's value in its canonical text, percent-encoded as binary mode does it."""
    if not _NAME.fullmatch(name):
        raise invalid_event(f"{name[:50]}: names of attributes are lower-case letters and digits.")
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, str):
        text = value
    else:
        raise invalid_event(f"{name}: an attribute is a text, a whole number, true or false.")
    return quote(text, safe=AS_IT_IS)
