"""In the API document: which problems come with which status, and what every address may answer."""

from __future__ import annotations

from typing import Any

from gateway.openapi_parts import problem_response
from gateway.problems import HTTP_ERROR, KINDS

EVERYWHERE: dict[str, dict[str, Any]] = {
    "400": problem_response("The request is not valid, or could be read in two ways."),
    "405": problem_response("Another method is taken here.", headers={"Allow": "Which."}),
    "431": problem_response("The headers are too large, or too many."),
    "500": problem_response("A bug of ours: send it again, with the same Idempotency-Key if it had one."),
}
"""Responses that no operation needs to list."""

_CONTENT = "application/problem+json"


def complete_problems(document: dict[str, Any]) -> None:
    """Add what is answered everywhere, and name the problem types of each status."""
    schemas = document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            for status, response in EVERYWHERE.items():
                responses.setdefault(status, response)
            operation["responses"] = {
                status: _typed(status, responses[status], schemas) for status in sorted(responses)
            }


def _typed(status: str, response: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    types = [kind.type for kind in KINDS.values() if str(kind.status) == status and kind is not HTTP_ERROR]
    if not types or _CONTENT not in response.get("content", {}):
        return response
    name = f"Problem{status}"
    schemas[name] = {
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "properties": {"type": {"enum": types}, "status": {"const": int(status)}},
    }
    typed: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"}
    own = response["content"][_CONTENT]["schema"]
    if own != {"$ref": "#/components/schemas/Problem"}:
        typed = {"allOf": [own, typed]}
    return response | {"content": response["content"] | {_CONTENT: {"schema": typed}}}
