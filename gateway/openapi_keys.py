"""What API keys add to every entry of the API document."""

from __future__ import annotations

from typing import Any

from gateway.callers import asks_for_a_key
from gateway.openapi_parts import problem_response

SCHEME: dict[str, Any] = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, made by `forebay api-keys create NAME`. Without a file of keys"
    " (gateway.keys_file) none is asked for.",
}

_QUOTA = {
    "RateLimit-Policy": {
        "description": "The limits of the API key, if it has any: how much (q) in how many seconds (w).",
        "schema": {"type": "string"},
        "example": '"messages";q=200;w=1',
    },
    "RateLimit": {
        "description": "What is left of them (r), and after how many seconds they are whole again (t).",
        "schema": {"type": "string"},
        "example": '"messages";r=150;t=1',
    },
}

_SENDS = frozenset({"post", "put", "patch", "delete"})


def guard(document: dict[str, Any], *, needed: bool) -> None:
    """
    Say of every operation that asks for an API key how it refuses without one, or beyond its limits.

    `needed`: there is a file of keys; otherwise requests without one are served.
    """
    document["components"].setdefault("securitySchemes", {})["apiKey"] = SCHEME
    for path, operations in document["paths"].items():
        if not asks_for_a_key(path):
            continue
        for method, operation in operations.items():
            operation["security"] = [{"apiKey": []}] if needed else [{"apiKey": []}, {}]
            responses = operation["responses"]
            responses["401"] = problem_response(
                "No valid API key was sent.", headers={"WWW-Authenticate": "Bearer."}
            )
            if "{queue}" in path or "{target}" in path:
                responses["403"] = problem_response(
                    "The API key may not use this, whether or not it is there."
                )
            if method in _SENDS:
                responses["429"] = problem_response("The API key sends more than it may.", retry=True)
            for response in responses.values():
                response["headers"] = response.get("headers", {}) | _QUOTA
            operation["responses"] = dict(sorted(responses.items(), key=lambda item: str(item[0])))
