"""What the API document says of /v1/sources/{source}."""

from __future__ import annotations

from typing import Any

from gateway.openapi_parts import accepted_response, problem_response

DELIVER: dict[str, Any] = {
    "summary": "Deliver a webhook",
    "description": "For other services: a delivery whose signature is right becomes a message, byte for byte."
    " Which headers carry the signature, its time and the event's id depends on the source's scheme.",
    "operationId": "deliver_webhook",
    "tags": ["webhooks"],
    "security": [],
    "parameters": [
        {
            "name": "source",
            "in": "path",
            "required": True,
            "description": "The name of a table `[sources.<name>]` of the settings.",
            "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
            "example": "shop",
        },
    ],
    "requestBody": {"required": True, "content": {"*/*": {"schema": {}}, "application/json": {"schema": {}}}},
    "responses": {
        "200": {
            "description": "Genuine, and no event: a ping, or a challenge with its answer.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Ping"}},
                "text/plain": {"schema": {"type": "string"}},
            },
        },
        "202": accepted_response(),
        "400": problem_response("The request is not valid."),
        "401": problem_response(
            "The signature, its time or its id is missing, wrong or too old.",
            headers={"WWW-Authenticate": "Says that a signature is asked for."},
        ),
        "404": problem_response("There is no such source."),
        "405": problem_response("Only POST is taken here.", headers={"Allow": "POST."}),
        "408": problem_response("The body did not arrive in time."),
        "413": problem_response("The body is too large."),
        "415": problem_response(
            "The body is compressed: only what was signed is stored.", headers={"Accept-Encoding": "identity"}
        ),
        "431": problem_response("The headers to keep are too large."),
        "500": problem_response("A bug of ours: send it again."),
        "503": problem_response("Not now: send it again after Retry-After.", retry=True),
    },
}

PING: dict[str, Any] = {
    "type": "object",
    "required": ["source", "queue", "verified", "stored"],
    "properties": {
        "source": {"type": "string"},
        "queue": {"type": "string"},
        "verified": {"const": True},
        "stored": {"const": False},
    },
}
