"""What the API document says of batches."""

from __future__ import annotations

from typing import Any

from forebay.brokers.api import DURABILITIES
from gateway.batches.items import FORMS
from gateway.batches.results import STATUSES
from gateway.openapi_parts import PROBLEM, problem_response

_COUNTS: dict[str, Any] = {
    "type": "object",
    "required": list(STATUSES),
    "properties": {status: {"type": "integer", "minimum": 0} for status in STATUSES},
    "description": "How many items have each status.",
}

RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {
            "enum": list(STATUSES),
            "description": "ok: stored. duplicate: this gateway accepted it before. rejected: sending it"
            " again changes nothing. retry: send it again, under the same idempotency key.",
        },
        "id": {"type": "string", "format": "uuid", "description": "The message's id, if one was made."},
        "durability": {"enum": list(DURABILITIES)},
        "type": {**PROBLEM["properties"]["type"], "description": "Why it is not stored: as in a problem."},
        "detail": {"type": "string"},
        "item": {
            "type": "integer",
            "minimum": 0,
            "description": "Which item it is, from 0; only with Prefer: return=minimal.",
        },
    },
}

_MEMBERS: dict[str, Any] = {
    "queue": {"type": "string"},
    "items": {"type": "integer", "minimum": 0, "description": "How many were looked at."},
    "counts": _COUNTS,
    "results": {
        "type": "array",
        "items": {"$ref": "#/components/schemas/BatchResult"},
        "description": "One per item, in order; with Prefer: return=minimal those of failures only.",
    },
}

ANSWER: dict[str, Any] = {"type": "object", "required": list(_MEMBERS), "properties": _MEMBERS}

PROBLEM_WITH_RESULTS: dict[str, Any] = {
    **PROBLEM,
    "properties": {**PROBLEM["properties"], **_MEMBERS, "limit": {"type": "integer"}},
}

SCHEMAS = {"BatchResult": RESULT, "BatchAnswer": ANSWER, "BatchProblem": PROBLEM_WITH_RESULTS}

DESCRIBED: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "body": {"description": "Any JSON; its bytes are kept as they stand in the line."},
        "body_base64": {"type": "string", "contentEncoding": "base64"},
        "content_type": {"type": "string"},
        "idempotency_key": {"type": "string"},
        "ordering_key": {"type": "string"},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "delay": {"type": ["number", "string"]},
        "ttl": {"type": ["number", "string"]},
    },
    "oneOf": [{"required": ["body"]}, {"required": ["body_base64"]}],
}

_LINES = {"type": "string", "description": "One body per line."}
_BODIES: dict[str, Any] = {
    "application/json": {"schema": {"type": "array", "items": {}}},
    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": {"type": "object"}}},
    "application/vnd.forebay.batch+ndjson": {
        "schema": {
            "type": "string",
            "contentSchema": DESCRIBED,
            "description": "One such object per line.",
        },
        "example": '{"body": {"order": 1}, "ordering_key": "customer-42"}\n',
    },
}


def _answer(description: str, **headers: Any) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {
            "Preference-Applied": {
                "schema": {"type": "string"},
                "description": "Those of the preferences asked for that were honoured.",
            },
            **headers,
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchAnswer"}}},
    }


def _problem(description: str, **more: Any) -> dict[str, Any]:
    """A problem that may come in the middle of a batch."""
    found = problem_response(description, **more)
    found["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/BatchProblem"}}}
    return found


def operation(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry; `parameters` are those of sending one message: most mean the same for each item."""
    changed = {
        "Idempotency-Key": "Item n of the batch, from 0, gets the key <key>/n: a batch that was cut off can"
        " be sent again as a whole.",
        "Prefer": "durability=X asks for at least that, for each item; return=minimal for counts, and"
        " results of failures only.",
    }
    examples = {"Prefer": "return=minimal"}
    return {
        "summary": "Send many messages",
        "description": "Read as a stream: items are stored while others are still on their way, and each has"
        " its result. What else the headers say holds for every item that does not say otherwise itself.",
        "operationId": "send_batch",
        "tags": ["messages"],
        "parameters": [
            {
                **p,
                **({"description": changed[p["name"]]} if p["name"] in changed else {}),
                **({"example": examples[p["name"]]} if p["name"] in examples else {}),
            }
            for p in parameters
        ],
        "requestBody": {
            "required": True,
            "content": {name: _BODIES.get(name, {"schema": _LINES, "example": "1\n2\n"}) for name in FORMS},
        },
        "responses": {
            "202": _answer("Every item is stored, as durably as its result says, or was before."),
            "207": _answer(
                "Some items are stored, and others are not: see `results`.",
                **{
                    "Retry-After": {
                        "schema": {"type": "integer", "minimum": 0},
                        "description": "Seconds; when some items are to be sent again.",
                    }
                },
            ),
            "400": _problem("A header is not valid, or the body is broken: the items before are told."),
            "404": problem_response("The queue is not declared."),
            "405": problem_response("Only POST is taken here.", headers={"Allow": "POST."}),
            "408": _problem("The body did not arrive in time; the items before are told."),
            "413": _problem("The batch has too many items; those that it may have are told."),
            "415": {
                **problem_response("A batch of this type, or so compressed, is not taken."),
                "headers": {
                    "Accept": {"schema": {"type": "string"}, "description": "What types are taken."},
                    "Accept-Encoding": {"schema": {"type": "string"}, "description": "What codings are."},
                },
            },
            "422": _problem("Every item was rejected."),
            "431": problem_response("The headers to keep are too large."),
            "500": problem_response("A bug of ours: send it again, with the same Idempotency-Key."),
            "503": _problem("Nothing was stored because of us: send it again after Retry-After.", retry=True),
        },
    }
