"""The API document: FastAPI's own, and the routes that do not pass through its router."""

from __future__ import annotations

from typing import Any

from forebay.brokers.api import DURABILITIES
from forebay.brokers.naming import QUEUE_NAME
from gateway.compression import ENCODINGS

PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Path of a page that explains the problem."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "retryable": {"type": "boolean", "description": "The same request may work later."},
        "id": {"type": "string", "description": "The message's id, once it has one."},
    },
}

ACCEPTED: dict[str, Any] = {
    "type": "object",
    "required": ["id", "queue", "durability", "duplicate"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "queue": {"type": "string"},
        "durability": {"enum": list(DURABILITIES)},
        "duplicate": {"type": "boolean", "description": "This gateway accepted the same message before."},
        "state": {
            "enum": ["accepted", "journaled", "waiting", "stored", "done", "dead", "discarded"],
            "description": "With Prefer: wait: what had become of the message when the wait ended.",
        },
        "reason": {"type": "string", "description": "Why it is dead."},
    },
}


ACCEPTED_HEADERS: dict[str, Any] = {
    "Location": {"schema": {"type": "string"}, "description": "Where its state can be asked."},
    "Preference-Applied": {
        "schema": {"type": "string"},
        "description": "Those of the preferences asked for that were honoured.",
    },
}


def problem_response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def problem_responses(**by_status: str) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`: s404="Not declared" and the like."""
    return {int(name[1:]): problem_response(text) for name, text in by_status.items()}


def _header(name: str, description: str, example: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


_DURATION = r"^[0-9]{1,6}(ms|s|m)?$"

SEND: dict[str, Any] = {
    "summary": "Send a message",
    "description": "Answered 202 once the message is durable; the body may be anything and is kept as it is.",
    "operationId": "send_message",
    "tags": ["messages"],
    "parameters": [
        {
            "name": "queue",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{QUEUE_NAME.pattern}$"},
            "example": "orders",
        },
        _header(
            "Idempotency-Key",
            "Sent again with the same key, the message takes effect once. Quoted, as the draft standard has"
            " it, or bare: both are the same key.",
            "order-1234-created",
            pattern=r"^[a-zA-Z0-9_.:-]{1,255}$",
        ),
        _header(
            "Forebay-Ordering-Key",
            "Messages with equal keys keep their order.",
            "customer-42",
            pattern=r"^[a-zA-Z0-9_.:-]{1,255}$",
        ),
        _header("Forebay-Delay", "Deliver this much later.", "30s", pattern=_DURATION),
        _header(
            "Forebay-Deliver-At", "Deliver not before this time.", "2027-01-31T08:00:00Z", format="date-time"
        ),
        _header("Forebay-TTL", "Worthless after this long.", "15m", pattern=_DURATION),
        _header(
            "Forebay-Meta-Source",
            "One of any: Forebay-Meta-<Name> is kept with the message as <name>.",
            "shop",
            pattern=r"^[a-zA-Z0-9_.:-]{1,255}$",
        ),
        _header(
            "Prefer",
            "durability=X asks for at least that; wait=N answers when the message is stored, or after"
            " N seconds (at most 30).",
            "durability=synced, wait=10",
        ),
        _header(
            "Content-Encoding",
            "How the body is compressed. It is kept, and its size limited, uncompressed.",
            "identity",
            enum=["identity", *ENCODINGS],
        ),
    ],
    "requestBody": {"required": True, "content": {"*/*": {"schema": {}}, "application/json": {"schema": {}}}},
    "responses": {
        "201": {
            "description": "With Prefer: wait: it is stored in the database, or done.",
            "headers": ACCEPTED_HEADERS,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
        },
        "202": {
            "description": "Stored in the queue, as durably as `durability` says.",
            "headers": ACCEPTED_HEADERS,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
        },
        "400": problem_response("A header, the queue's name or the compressed body is not valid."),
        "404": problem_response("The queue is not declared."),
        "405": problem_response("Only POST is taken here."),
        "408": problem_response("The body did not arrive in time."),
        "413": problem_response("The body is too large."),
        "415": {
            **problem_response("The body is compressed in a way that is not taken."),
            "headers": {"Accept-Encoding": {"schema": {"type": "string"}, "description": "What is taken."}},
        },
        "422": problem_response("The idempotency key was used for another message."),
        "431": problem_response("The headers to keep are too large."),
        "503": problem_response("Not now: send it again after Retry-After, with the same Idempotency-Key."),
    },
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add what FastAPI does not know of, and take out the error body that we never send."""
    document["paths"] = {"/v1/queues/{queue}/messages": {"post": SEND}, **document["paths"]}
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {"Problem": PROBLEM, "Accepted": ACCEPTED}
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    return document
