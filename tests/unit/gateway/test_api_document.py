"""The served API keeps to its own OpenAPI document, whatever is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from forebay.forwarding import METHODS
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from gateway.forward.endpoint import Target
from gateway.keys_file import changing, make
from tests.unit.gateway.support import running


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
        targets = {"billing": Target(queue="orders", methods=METHODS)}
        async with running(database=database, targets=targets, **settings) as gateway:
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
]


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


def examine(operations: list[Any], *, examples: int, headers: dict[str, str] | None = None) -> None:
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        def answers(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS, headers=headers)

        answers()
