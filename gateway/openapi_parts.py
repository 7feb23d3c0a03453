"""Pieces that the API document's entries are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.brokers.api import DURABILITIES

PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "retryable"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "pattern": "^/problems/[a-z-]+$",
            "description": "Path of a page that explains the problem.",
        },
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
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

IDEMPOTENCY_KEY = "^[!-~]{1,257}$"
"""Visible ASCII, 255 of them, or quoted."""
DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$"
ORDERING_KEY: dict[str, Any] = {"minLength": 1, "maxLength": 255}
KEPT: dict[str, Any] = {"maxLength": 16384}

RETRY_AFTER = {
    "description": "Seconds to wait before the same request may work.",
    "required": True,
    "schema": {"type": "integer", "minimum": 0},
}


def problem_response(
    description: str, *, headers: Mapping[str, str] | None = None, retry: bool = False
) -> dict[str, Any]:
    """
    A problem document, with these headers by name and description.

    `retry` adds Retry-After, which every 429 and 503 of ours has.
    """
    found: dict[str, Any] = {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in (headers or {}).items()
    }
    if retry:
        found["Retry-After"] = RETRY_AFTER
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        **({"headers": found} if found else {}),
    }


def problem_responses(**by_status: str) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`: s404="Not declared" and the like."""
    return {
        int(name[1:]): problem_response(text, retry=name in ("s429", "s503"))
        for name, text in by_status.items()
    }


def accepted_response(
    description: str = "Stored in the queue, as durably as `durability` says.",
) -> dict[str, Any]:
    """201 and 202: a message is stored."""
    return {
        "description": description,
        "headers": {
            "Location": {
                "required": True,
                "schema": {"type": "string", "pattern": "^/v1/messages/"},
                "description": "Where its state can be asked.",
            },
            "Preference-Applied": {
                "schema": {"type": "string"},
                "description": "Those of the preferences asked for that were honoured.",
            },
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
    }
