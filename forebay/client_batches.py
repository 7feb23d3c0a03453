"""How the client writes a batch, and what it reads out of the answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from forebay.client_answers import Accepted, Busy, Refused, Trouble

CONTENT_TYPE = "application/vnd.forebay.batch+ndjson"

_BATCH_ITEMS = 1_000
_BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message of a batch. What is None is as the call says for all of them."""

    body: bytes = field(repr=False)
    content_type: str | None = None
    idempotency_key: str | None = None
    ordering_key: str | None = None
    delay: float | None = None
    """Seconds; so is `ttl`."""
    ttl: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def line_of(item: Item, *, key: str, content_type: str) -> bytes:
    """The item as a line; every one has its key, so that it can be sent again without the others."""
    kind = item.content_type or content_type
    said: dict[str, Any] = {"idempotency_key": item.idempotency_key or key, "content_type": kind}
    for name in ("ordering_key", "delay", "ttl"):
        if (value := getattr(item, name)) is not None:
            said[name] = value
    if item.headers:
        said["headers"] = dict(item.headers)
    if _fits_in_a_line(item.body, kind):
        return orjson.dumps(said)[:-1] + b',"body":' + item.body + b"}\n"
    said["body_base64"] = base64.b64encode(item.body).decode()
    return orjson.dumps(said) + b"\n"


def _fits_in_a_line(body: bytes, content_type: str) -> bool:
    """Whether it is JSON that keeps its bytes as a member of the line."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return False
    if b"\n" in body or b"\r" in body or body.strip() != body:
        return False
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def results_of(answer: bytes) -> list[dict[str, Any]] | None:
    """One for each item that the gateway looked at; None where the answer is none to a batch."""
    try:
        results = orjson.loads(answer)["results"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(results, list) and all(isinstance(r, dict) and "status" in r for r in results):
        return results
    return None


def chunks_of(lines: Sequence[bytes]) -> Iterator[list[int]]:
    """Numbers of lines that go in one request."""
    chunk: list[int] = []
    size = 0
    for n, line in enumerate(lines):
        if chunk and (len(chunk) >= _BATCH_ITEMS or size + len(line) > _BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(n)
        size += len(line)
    if chunk:
        yield chunk


def item_result(queue: str, said: Mapping[str, Any]) -> Accepted | Trouble:
    status = said["status"]
    if status in ("ok", "duplicate"):
        return Accepted(
            id=str(said.get("id", "")),
            queue=queue,
            durability=str(said.get("durability", "")),
            duplicate=status == "duplicate",
        )
    problem = str(said.get("type", ""))
    return Trouble(
        Busy if status == "retry" else Refused,
        str(said.get("detail", status)),
        problem=problem,
        maybe_stored=problem.endswith("outcome-unknown"),
    )
