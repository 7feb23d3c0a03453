"""What an API key may send holds for the items of a batch, one by one."""

from __future__ import annotations

from pathlib import Path

import httpx2

from forebay.ids import id_from_key
from tests.unit.gateway.keys import Keys
from tests.unit.gateway.support import Running, running


async def post(gateway: Running, body: bytes, headers: dict[str, str]) -> httpx2.Response:
    return await gateway.client.post(
        "/v1/queues/orders/batch", content=body, headers={"Content-Type": "application/x-ndjson", **headers}
    )


def lines(count: int) -> bytes:
    return b"\n".join(b"%d" % n for n in range(count))


async def test_items_beyond_the_rate_are_to_be_sent_again_and_none_is_let_past_them(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    shop = keys.add("shop", rate=0.001, burst=700)
    async with running(keys_file=keys.path) as gateway:
        first = await post(gateway, lines(1_000), shop)
        second = await post(gateway, lines(1), shop)

        results = first.json()["results"]
        assert first.status_code == 207
        assert [r["status"] for r in results] == ["ok"] * 700 + ["retry"] * 300
        assert {r["type"] for r in results[700:]} == {"/problems/quota-exceeded"}
        assert int(first.headers["retry-after"]) > 100
        assert [m.body for m in gateway.broker.messages] == [b"%d" % n for n in range(700)]
        assert (second.status_code, second.json()["type"]) == (429, "/problems/quota-exceeded")


async def test_a_rate_may_be_used_up_between_two_publishes(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    shop = keys.add("shop", rate=0.001, burst=500)
    async with running(keys_file=keys.path) as gateway:
        answer = await post(gateway, lines(1_000), shop)

        assert answer.status_code == 207
        assert [r["status"] for r in answer.json()["results"]] == ["ok"] * 500 + ["retry"] * 500
        assert len(gateway.broker.messages) == 500


async def test_a_key_that_may_not_use_the_queue_sends_nothing(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    shop = keys.add("shop", queues=["clicks"])
    async with running(keys_file=keys.path) as gateway:
        barred = await post(gateway, b"1", shop)
        nobody = await post(gateway, b"1", {})

        assert [barred.status_code, nobody.status_code] == [403, 401]
        assert gateway.broker.messages == []


async def test_the_keys_own_size_limit_is_on_items_and_not_on_the_batch(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    shop = keys.add("shop", max_body_bytes=10)
    async with running(keys_file=keys.path) as gateway:
        answer = await post(gateway, b"x" * 10 + b"\n" + b"y" * 11 + b"\n" + b"z" * 10, shop)

        assert [r["status"] for r in answer.json()["results"]] == ["ok", "rejected", "ok"]


async def test_a_tenants_share_of_memory_is_given_back(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    shop = keys.add("shop", tenant="acme")
    async with running(keys_file=keys.path, max_body_bytes=100, max_in_flight_bytes=20_000) as gateway:
        for _ in range(3):
            answer = await post(gateway, lines(500), shop)
            assert answer.json()["counts"]["ok"] == 500

        assert len(gateway.broker.messages) == 1_500
        parts = gateway.app.parts
        assert parts is not None
        assert parts.ingest._admission.size == 0


async def test_equal_keys_of_two_tenants_are_two_messages(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    acme, umbrella = keys.add("a", tenant="acme"), keys.add("b", tenant="umbrella")
    async with running(keys_file=keys.path) as gateway:
        for headers in (acme, umbrella):
            answer = await post(gateway, b"1", {**headers, "Idempotency-Key": "k"})
            assert answer.json()["counts"]["ok"] == 1

        assert {m.id for m in gateway.broker.messages} == {
            id_from_key(tenant, "orders", "k/0") for tenant in ("acme", "umbrella")
        }
