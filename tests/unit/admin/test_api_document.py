"""The admin API keeps to its own OpenAPI document, whatever is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
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

from forebay.storage.database import Database
from forebay.storage.schema import migrate
from tests.unit.admin.support import TOKEN, served
from tests.unit.dead_letters.world import bury


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of an admin API served in a thread of its own, with dead letters behind it."""
    path: Path = tmp_path_factory.mktemp("api") / "forebay.db"
    ready = threading.Event()
    there: dict[str, Any] = {}

    async def serve() -> None:
        database = Database(f"sqlite:///{path}")
        migrate(database)
        bury(database, 5)
        async with served(database) as admin:
            there.update(port=admin.port, loop=asyncio.get_running_loop(), end=asyncio.Event())
            ready.set()
            await there["end"].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{there['port']}/openapi.json")
    finally:
        there["loop"].call_soon_threadsafe(there["end"].set)
        thread.join(20)


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
    assert len(operations) == 19
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def answers(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

        answers()


def test_no_address_of_it_answers_without_a_token(api: Any) -> None:
    for operation in (result.ok() for result in api.get_all_operations()):
        if not operation.path.startswith("/admin"):
            continue

        @given(case=operation.as_strategy())
        @settings(max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def refused(case: schemathesis.Case[Any]) -> None:
            assert case.call().status_code == 401

        refused()
