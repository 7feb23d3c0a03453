"""What the API document says of /v1/forward/{target}/{path}, and of the answers that are kept."""

from __future__ import annotations

from typing import Any

from forebay.forwarding import METHODS
from gateway.openapi_parts import IDEMPOTENCY_KEY, ORDERING_KEY, accepted_response, problem_response

_MESSAGE_ID = {
    "Forebay-Message-Id": {
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
        "description": "The request's id: what became of it is at /v1/messages/{id}.",
    }
}


def _header(name: str, description: str, example: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


def _accepted() -> dict[str, Any]:
    response = accepted_response("The request is stored, and will be handed over.")
    response["headers"] |= _MESSAGE_ID
    return response


def _operation(method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": f"Have a service get a {method} request, also when it is away",
        "description": "The request is stored first, then handed over to the service, again and again until"
        " it answers. When it answers within `forward.<name>.wait` (or Prefer: wait), its own status, headers"
        " and body are the answer; else 202. The path may have further segments."
        + (" 405 unless forward.<name>.methods allows it." if method in ("GET", "HEAD") else ""),
        "operationId": f"forward_{method.lower()}",
        "tags": ["forwarding"],
        "parameters": [
            {
                "name": "target",
                "in": "path",
                "required": True,
                "description": "The name of a table `[forward.<name>]` of the settings.",
                "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
                "example": "billing",
            },
            {
                "name": "path",
                "in": "path",
                "required": True,
                "description": "Put behind the service's URL, as it is sent.",
                "schema": {"type": "string", "minLength": 1},
                "example": "invoices",
            },
            _header(
                "Idempotency-Key",
                "Sent again with the same key to the same address, the request takes effect once.",
                "order-1234-created",
                pattern=IDEMPOTENCY_KEY,
            ),
            _header(
                "Forebay-Ordering-Key",
                'Requests with equal keys keep their order, with order = "key".',
                "customer-42",
                **ORDERING_KEY,
            ),
            _header("Prefer", "wait=N: wait so many seconds for the service's answer, at most 30.", "wait=5"),
        ],
        "responses": {
            "202": _accepted(),
            "400": problem_response("A header is not valid, or the path could lead elsewhere."),
            "404": problem_response("There is no such target."),
            "405": problem_response(
                "The target does not take this method.", headers={"Allow": "Those it takes."}
            ),
            "408": problem_response("The body did not arrive in time."),
            "413": problem_response("The body is too large."),
            "414": problem_response("Path and query are too long."),
            "422": problem_response("The idempotency key was used for another request."),
            "431": problem_response("The headers to keep are too large."),
            "500": problem_response("A bug of ours: send it again with the same Idempotency-Key."),
            "503": problem_response("Not now: send it again after Retry-After.", retry=True),
            "default": {"description": "The service's own answer."},
        },
    }
    if method not in ("GET", "HEAD"):
        operation["requestBody"] = {"required": False, "content": {"*/*": {"schema": {}}}}
    return operation


FORWARD: dict[str, Any] = {method.lower(): _operation(method) for method in METHODS}

KEPT_ANSWER: dict[str, Any] = {
    "summary": "What the service answered to a forwarded request",
    "description": "Its own status, headers and body. Kept for `database.answer_retention`.",
    "operationId": "show_answer",
    "tags": ["forwarding"],
    "parameters": [
        {
            "name": "message_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        },
    ],
    "responses": {
        "400": problem_response("Not a message id."),
        "404": problem_response("There is no answer yet, or none that is kept.", retry=True),
        "503": problem_response("The database cannot be asked.", retry=True),
        "default": {"description": "The service's own answer.", "headers": _MESSAGE_ID},
    },
}
