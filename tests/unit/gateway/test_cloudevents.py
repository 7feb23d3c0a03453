"""CloudEvents in binary and structured mode, one or many at a time, are the same message."""

from __future__ import annotations

import base64

import httpx2
import orjson
import pytest

from tests.unit.gateway.support import Running, running

STRUCTURED = "application/cloudevents+json; charset=utf-8"
BATCH = "application/cloudevents-batch+json"
ATTRIBUTES = {"specversion": "1.0", "id": "a-1", "source": "/shop", "type": "order.created"}


async def post(gateway: Running, event: object, kind: str = STRUCTURED) -> httpx2.Response:
    body = event if isinstance(event, bytes) else orjson.dumps(event)
    route = "batch" if kind == BATCH else "messages"
    return await gateway.client.post(
        f"/v1/queues/orders/{route}", content=body, headers={"Content-Type": kind}
    )


async def test_all_ways_to_send_an_event_make_the_same_message() -> None:
    binary = {f"ce-{name}": value for name, value in ATTRIBUTES.items()} | {
        "ce-subject": "caf%C3%A9%20%22x%22"
    }
    event = {**ATTRIBUTES, "subject": 'caf\u00e9 "x"', "datacontenttype": "application/json"}
    text = orjson.dumps(event)[:-1] + b', "data": {"n": 1.00} }'
    async with running() as gateway:
        first = await gateway.post(b'{"n": 1.00}', headers={**binary, "Content-Type": "application/json"})
        second = await post(gateway, text)
        third = await post(gateway, b"[" + text + b"]", BATCH)

        [message] = gateway.broker.messages
        assert message.body == b'{"n": 1.00}'
        assert message.headers == binary
        assert message.content_type == "application/json"
        assert [first.status_code, second.status_code, third.status_code] == [202] * 3
        assert [first.json()["duplicate"], second.json()["duplicate"]] == [False, True]
        assert third.json()["results"][0] == {
            "status": "duplicate", "id": message.id, "durability": "synced"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("members", "body", "kind"),
    [
        ({"data": "text", "datacontenttype": "text/plain"}, b"text", "text/plain"),
        ({"data": "text"}, b'"text"', "application/json"),
        ({"data": None}, b"null", "application/json"),
        ({"data": [1, 2], "datacontenttype": "application/x+json"}, b"[1,2]", "application/x+json"),
        ({"data_base64": "AAH/", "datacontenttype": "image/png"}, b"\x00\x01\xff", "image/png"),
        ({}, b"", "application/json"),
    ],
)
async def test_data_becomes_the_body(members: dict[str, object], body: bytes, kind: str) -> None:
    async with running() as gateway:
        answer = await post(gateway, {**ATTRIBUTES, **members})

        [message] = gateway.broker.messages
        assert (answer.status_code, message.body, message.content_type) == (202, body, kind)


async def test_attributes_of_other_types_are_written_as_binary_mode_has_them() -> None:
    async with running() as gateway:
        await post(gateway, {**ATTRIBUTES, "count": 5, "urgent": True, "nothing": None})

        headers = gateway.broker.messages[0].headers
        assert (headers["ce-count"], headers["ce-urgent"]) == ("5", "true")
        assert "ce-nothing" not in headers


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        ({**ATTRIBUTES, "specversion": "0.3"}, "specversion"),
        ({**ATTRIBUTES, "id": ""}, "id"),
        ({n: v for n, v in ATTRIBUTES.items() if n != "source"}, "source"),
        ({n: v for n, v in ATTRIBUTES.items() if n != "type"}, "type"),
        ({**ATTRIBUTES, "data": 1, "data_base64": "AA=="}, "data"),
        ({**ATTRIBUTES, "data_base64": "?"}, "data_base64"),
        ({**ATTRIBUTES, "data_base64": 1}, "data_base64"),
        ({**ATTRIBUTES, "Upper": "x"}, "Upper"),
        ({**ATTRIBUTES, "ratio": 1.5}, "ratio"),
        ({**ATTRIBUTES, "list": []}, "list"),
        ({**ATTRIBUTES, "datacontenttype": 1}, "datacontenttype"),
    ],
)
async def test_a_broken_event_is_400_and_the_detail_names_the_attribute(event: object, named: str) -> None:
    async with running() as gateway:
        answer = await post(gateway, event)
        parts = gateway.app.parts
        assert parts is not None

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-event")
        assert named in answer.json()["detail"]
        assert gateway.broker.messages == []
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


@pytest.mark.parametrize("missing", ["id", "source", "type"])
async def test_a_binary_event_without_a_required_attribute_is_400(missing: str) -> None:
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items() if name != missing}
    async with running() as gateway:
        answer = await gateway.post(headers=headers)

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-event")
        assert missing in answer.json()["detail"]


async def test_a_batch_of_events_is_never_stored_as_one_message() -> None:
    async with running() as gateway:
        answer = await gateway.post(orjson.dumps([ATTRIBUTES]), headers={"Content-Type": BATCH})

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-event")
        assert "/batch" in answer.json()["detail"]
        assert gateway.broker.messages == []


async def test_without_a_version_they_are_only_headers() -> None:
    async with running() as gateway:
        answer = await gateway.post(headers={"ce-type": "x"})

        assert answer.status_code == 202
        assert gateway.broker.messages[0].headers == {"ce-type": "x"}


async def test_a_signature_in_an_event_is_not_kept() -> None:
    async with running() as gateway:
        await post(gateway, {**ATTRIBUTES, "signature": "secret"})

        assert "ce-signature" not in gateway.broker.messages[0].headers


async def test_a_key_of_the_request_comes_before_source_and_id() -> None:
    async with running() as gateway:
        for key in ("k-1", "k-2"):
            await gateway.client.post(
                "/v1/queues/orders/messages",
                content=orjson.dumps({**ATTRIBUTES, "data_base64": base64.b64encode(b"x").decode()}),
                headers={"Content-Type": STRUCTURED, "Idempotency-Key": key},
            )

        assert len(gateway.broker.messages) == 2
