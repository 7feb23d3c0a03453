"""Bodies that must fit a JSON Schema, and what is said of those that do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import SettingsError
from gateway.schemas import Schema
from tests.unit.gateway.support import running

ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "integer"},
        "lines": {"type": "array", "items": {"properties": {"price": {"type": "number", "minimum": 0}}}},
        "code": {"pattern": "^(a+)+$"},
    },
    "additionalProperties": False,
}


def schema(folder: Path, document: Any = ORDER) -> Schema:
    path = folder / "order.schema.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return Schema("queues.orders.schema.file", path)


async def test_what_fits_is_stored_and_what_does_not_is_422_with_the_place_and_never_the_value(
    tmp_path: Path,
) -> None:
    async with running(schemas={"orders": schema(tmp_path)}) as gateway:
        good = await gateway.post(b'{"id": 1}')
        bad = await gateway.post(b'{"id": "s3cret", "lines": [{"price": 1}, {"price": -77}]}')

        assert good.status_code == 202
        assert (bad.status_code, bad.json()["type"]) == (422, "/problems/schema-mismatch")
        assert bad.json()["errors"] == [
            {"pointer": "/id", "broken": "type: integer"},
            {"pointer": "/lines/1/price", "broken": "minimum: 0"},
        ]
        assert not {"s3cret", "77"} & set(bad.text.replace('"', " ").split())
        assert [m.body for m in gateway.broker.messages] == [b'{"id": 1}']
        assert (await gateway.post(b"anything", queue="clicks")).status_code == 202


@pytest.mark.parametrize("body", [b"", b"not json", b"[1", b"\xff"])
async def test_what_is_not_json_does_not_fit(tmp_path: Path, body: bytes) -> None:
    async with running(schemas={"orders": schema(tmp_path)}) as gateway:
        answer = await gateway.post(body)

        assert answer.status_code == 422
        assert answer.json()["errors"] == [{"pointer": "", "broken": "the body is not JSON"}]


async def test_a_body_nested_too_deeply_does_not_fit_and_holds_no_place(tmp_path: Path) -> None:
    nest = b"[" * 900 + b"]" * 900
    deep = b"[" + nest + b"," + nest + b"]"
    unique = schema(tmp_path, {"uniqueItems": True})
    async with running(schemas={"orders": unique}, max_in_flight=1) as gateway:
        answers = [await gateway.post(deep) for _ in range(3)]
        batch = await gateway.client.post(
            "/v1/queues/orders/batch",
            content=b"1\n" + deep,
            headers={"Content-Type": "application/x-ndjson"},
        )

        assert [a.status_code for a in answers] == [422] * 3
        assert answers[0].json()["errors"] == [{"pointer": "", "broken": "the body is nested too deeply"}]
        assert [r["status"] for r in batch.json()["results"]] == ["ok", "rejected"]
        assert (await gateway.post(b"2")).status_code == 202


async def test_a_refused_body_leaves_its_idempotency_key_free(tmp_path: Path) -> None:
    async with running(schemas={"orders": schema(tmp_path)}) as gateway:
        key = {"Idempotency-Key": "order-1"}
        assert (await gateway.post(b"{}", headers=key)).status_code == 422
        assert (await gateway.post(b'{"id": 1}', headers=key)).status_code == 202


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/vnd.forebay.batch+ndjson"])
async def test_items_of_a_batch_are_checked_one_by_one(tmp_path: Path, content_type: str) -> None:
    bodies = ['{"id": 1}', '{"id": "x"}', '{"id": 3}']
    lines = bodies if content_type == "application/x-ndjson" else [f'{{"body": {body}}}' for body in bodies]
    async with running(schemas={"orders": schema(tmp_path)}) as gateway:
        answer = await gateway.client.post(
            "/v1/queues/orders/batch", content="\n".join(lines), headers={"Content-Type": content_type}
        )

        assert answer.status_code == 207
        assert [r["status"] for r in answer.json()["results"]] == ["ok", "rejected", "ok"]
        assert "/id: type: integer" in answer.json()["results"][1]["detail"]
        assert [m.body for m in gateway.broker.messages] == [b'{"id": 1}', b'{"id": 3}']


def test_a_pattern_cannot_stop_the_gateway(tmp_path: Path) -> None:
    """In a process of its own, which is ended should it be stopped."""
    schema(tmp_path, {"pattern": r"^(?=a)(a|a)*(a|a)*(a|a)*\1$"})
    script = (
        "from pathlib import Path; from gateway.schemas import Schema; import sys;"
        "print(Schema('x', Path(sys.argv[1])).refusal(b'\"' + b'a' * 100_000 + b'b\"').status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "order.schema.json")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "422", done.stderr


def test_another_file_beside_the_schema_may_be_referred_to(tmp_path: Path) -> None:
    (tmp_path / "id.json").write_text('{"type": "integer"}')
    refers = schema(tmp_path, {"properties": {"id": {"$ref": "id.json"}}})

    assert refers.refusal(b'{"id": 1}') is None
    assert refers.refusal(b'{"id": "x"}') is not None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "is not JSON"),
        ({"type": "objekt"}, "is no JSON Schema"),
        ({"pattern": "("}, "is no JSON Schema"),
        ({"$ref": "http://127.0.0.1:1/s.json"}, "outside the schema's folder"),
        ({"$ref": "file:///etc/hostname"}, "outside the schema's folder"),
        ({"$ref": "missing.json"}, "missing.json"),
    ],
)
def test_a_file_that_is_no_schema_is_an_error_at_the_start(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        schema(tmp_path, document)
    assert "queues.orders.schema.file" in str(error.value)


def test_a_missing_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        Schema("queues.orders.schema.file", tmp_path / "none.json")
