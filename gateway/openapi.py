"""The API document: FastAPI's own, and the routes that do not pass through its router."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from forebay.brokers.naming import QUEUE_NAME
from gateway.batches import document as batches
from gateway.compression import ENCODINGS
from gateway.forward.document import FORWARD, KEPT_ANSWER
from gateway.openapi_keys import guard
from gateway.openapi_parts import (
    ACCEPTED,
    DURATION,
    IDEMPOTENCY_KEY,
    KEPT,
    ORDERING_KEY,
    PROBLEM,
    accepted_response,
    problem_response,
)
from gateway.openapi_problems import complete_problems
from gateway.sources.document import DELIVER, PING


def _header(name: str, description: str, example: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


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
            pattern=IDEMPOTENCY_KEY,
        ),
        _header(
            "Forebay-Ordering-Key",
            "Messages with equal keys keep their order.",
            "customer-42",
            **ORDERING_KEY,
        ),
        _header("Forebay-Delay", "Deliver this much later.", "30s", pattern=DURATION),
        _header(
            "Forebay-Deliver-At", "Deliver not before this time.", "2027-01-31T08:00:00Z", format="date-time"
        ),
        _header("Forebay-TTL", "Worthless after this long.", "15m", pattern=DURATION),
        _header(
            "Forebay-Meta-Source",
            "One of any: Forebay-Meta-<Name> is kept with the message as <name>.",
            "shop",
            **KEPT,
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
        "201": accepted_response("With Prefer: wait: it is stored in the database, or done."),
        "202": accepted_response(),
        "400": problem_response("A header, the queue's name or the compressed body is not valid."),
        "404": problem_response("The queue is not declared."),
        "405": problem_response("Only POST is taken here.", headers={"Allow": "POST."}),
        "408": problem_response("The body did not arrive in time."),
        "413": problem_response("The body is too large."),
        "415": problem_response(
            "The body is compressed in a way that is not taken.",
            headers={"Accept-Encoding": "What is taken."},
        ),
        "422": problem_response(
            "The idempotency key was used for another message, or the body does not fit the schema."
        ),
        "431": problem_response("The headers to keep are too large."),
        "500": problem_response("A bug of ours: send it again, with the same Idempotency-Key."),
        "503": problem_response(
            "Not now: send it again after Retry-After, with the same Idempotency-Key.", retry=True
        ),
    },
}


BARE: dict[str, Any] = {
    "/v1/queues/{queue}/messages": {"post": SEND},
    "/v1/queues/{queue}/batch": {"post": batches.operation(SEND["parameters"])},
    "/v1/sources/{source}": {"post": DELIVER},
    "/v1/forward/{target}/{path}": FORWARD,
    "/v1/messages/{message_id}/answer": {"get": KEPT_ANSWER},
}
"""The paths that FastAPI knows nothing of: they stand before its router, or answer as others do."""


def complete(document: dict[str, Any], *, keys_needed: bool = False) -> dict[str, Any]:
    """
    Add what FastAPI does not know of, and take out the error body that we never send.

    `keys_needed`: requests without an API key are refused.
    """
    # A copy: what is added below is of this document, and there may be several.
    document["paths"] = deepcopy(BARE) | document["paths"]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {"Problem": PROBLEM, "Accepted": ACCEPTED, "Ping": PING, **batches.SCHEMAS}
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    guard(document, needed=keys_needed)
    complete_problems(document)
    return document
