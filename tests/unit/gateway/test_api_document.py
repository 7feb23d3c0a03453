"""The served API keeps to its own OpenAPI document, whatever is sent."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from forebay.forwarding import METHODS
from forebay.section import Password
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from gateway.forward.endpoint import Target
from gateway.keys_file import changing, make
from gateway.problems import KINDS
from gateway.sources.settings import SourceSettings
from tests.unit.gateway.support import running

SECRET = "a secret of the shop's"


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Any]:
    """The document of a gateway served in a thread of its own, with a database behind it."""
    ready = threading.Event()
    served: dict[str, Any] = {}

    def database() -> Database:
        found = Database(f"sqlite:///{folder}/forebay.db")
        migrate(found)
        return found

    async def serve() -> None:
        sources = {"shop": SourceSettings(scheme="github", queue="orders", secrets=(Password(SECRET),))}
        targets = {"billing": Target(queue="orders", methods=METHODS)}
        async with running(database=database, targets=targets, sources=sources, **settings) as gateway:
            served.update(port=gateway.port, loop=asyncio.get_running_loop(), end=asyncio.Event())
            ready.set()
            await served["end"].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{served['port']}/openapi.json")
    finally:
        served["loop"].call_soon_threadsafe(served["end"].set)
        thread.join(20)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(tmp_path_factory.mktemp("api")) as document:
        yield document


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    allow_header_conformance,
    missing_required_header,
    negative_data_rejection,
]
"""
All that apply. Not that whatever fits is accepted: which headers go together (a delay or a time, an
encoding and its body) cannot be said in such a document.
"""


def test_every_answer_is_as_documented(api: Any) -> None:
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) == 15
    examine(operations, examples=20)


def test_so_are_those_to_an_api_key_with_limits_and_those_to_none(tmp_path: Path) -> None:
    key, kept = make("shop", queues=["orders"], rate=5, max_body_bytes=20)
    with changing(tmp_path / "keys.json") as keys:
        keys.append(kept)
    with served(tmp_path, keys_file=tmp_path / "keys.json") as document:
        operations = [result.ok() for result in document.get_all_operations()]
        guarded = [op for op in operations if op.definition.raw.get("security") == [{"apiKey": []}]]
        assert {op.path for op in operations} - {op.path for op in guarded} == {
            "/livez", "/readyz", "/v1/sources/{source}",
        }  # fmt: skip
        examine(guarded, examples=10, headers={"Authorization": f"Bearer {key}"})
        examine(guarded, examples=3)


def test_a_genuine_webhook_is_answered_as_documented(api: Any) -> None:
    body = b'{"order": 1}'
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    for event, status in (("ping", 200), ("push", 202)):
        case = api["/v1/sources/{source}"]["POST"].Case(
            path_parameters={"source": "shop"},
            headers={"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Event": event},
            body=body,
            media_type="application/json",
        )
        assert case.call_and_validate(checks=CHECKS).status_code == status


def test_the_document_names_every_problem_and_what_comes_with_each_status(api: Any) -> None:
    document = api.raw_schema
    schemas = document["components"]["schemas"]
    named: set[str] = set()
    with_status = {"401": "WWW-Authenticate", "405": "Allow", "429": "Retry-After", "503": "Retry-After"}
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            assert {"400", "405", "431", "500"} <= set(responses)
            for status, header in with_status.items():
                if "application/problem+json" in responses.get(status, {}).get("content", {}):
                    assert header in responses[status]["headers"], (operation["summary"], status)
            for response in responses.values():
                problem = response.get("content", {}).get("application/problem+json")
                if problem is not None:
                    *_, said = problem["schema"].get("allOf", [problem["schema"]])
                    schema = schemas[said["$ref"].rpartition("/")[2]]
                    named |= set(schema["properties"]["type"]["enum"])
    # That one is for what frameworks may say by themselves.
    assert {kind.type for kind in KINDS.values()} - named == {"/problems/http-error"}


TAKE_ANYTHING = {"/livez", "/readyz", "/v1/queues"}
"""No request to these is wrong."""


def examine(operations: list[Any], *, examples: int, headers: dict[str, str] | None = None) -> None:
    """The same cases at each run: what fits the document, and as many of what does not."""
    for operation in operations:
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            def answers(case: schemathesis.Case[Any]) -> None:
                for name, value in (case.headers or {}).items():
                    if name.lower() == "prefer" and "wait" in str(value):
                        case.headers[name] = "wait=0"  # the example's ten seconds are for people
                case.call_and_validate(checks=CHECKS, headers=headers)

            try:
                answers()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.path
                assert operation.path in TAKE_ANYTHING, operation.path
