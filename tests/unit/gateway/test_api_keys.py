"""Requests with and without API keys: who is let in, to which queues, and what changes while it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from forebay.brokers.api import Delivery
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.once import claim
from forebay.storage.schema import migrate
from gateway.forward.endpoint import Target
from gateway.queues import QueueRegistry
from gateway.server import bind
from gateway.settings import GatewaySettings
from tests.unit.cli.installation import delivery
from tests.unit.gateway.keys import Keys
from tests.unit.gateway.support import Running, ScriptedBroker, request, running
from tests.waiting import until


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@asynccontextmanager
async def guarded(keys: Keys, **settings: Any) -> AsyncIterator[Running]:
    async with running(keys_file=keys.path, **settings) as gateway:
        yield gateway


async def refreshed(gateway: Running) -> None:
    """The changed file is looked at now, rather than within a second."""
    assert gateway.app.parts is not None
    await gateway.app.parts.keyring.refresh()


def problem(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


async def test_a_valid_key_is_let_in(keys: Keys) -> None:
    shop = keys.add("shop")
    async with guarded(keys) as gateway:
        assert (await gateway.post(b"1", headers=shop)).status_code == 202
        assert (await gateway.post(b"2", headers={"authorization": f"bearer   {keys.of['shop']}"})).is_success

        assert [m.body for m in gateway.broker.messages] == [b"1", b"2"]
        assert all("authorization" not in m.headers for m in gateway.broker.messages)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer fbk_" + "0" * 64, "Basic dXNlcjpwYXNz", "fbk_", "Bearer \xff"],
)
async def test_without_a_valid_key_nothing_is_read_and_the_answer_names_the_command(
    keys: Keys, authorization: str
) -> None:
    keys.add("shop")
    async with guarded(keys) as gateway:
        answer = await gateway.raw(
            request(headers=f"Authorization: {authorization}\r\nContent-Length: 1000000\r\n", length=False)
        )

        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith('bearer realm="forebay"')
        assert "forebay api-keys create" in answer.problem["detail"]
        assert not gateway.broker.messages


async def test_credentials_of_another_kind_are_no_api_key(keys: Keys) -> None:
    keys.add("shop")
    async with guarded(keys) as gateway:
        basic = await gateway.post(b"x", headers={"Authorization": "Basic dXNlcjpwYXNz"})
        unknown = await gateway.post(b"x", headers={"Authorization": "bearer fbk_0"})

    assert "No API key was sent" in basic.json()["detail"]
    # RFC 6750, section 3.1: an error only where a token came.
    assert "error" not in basic.headers["www-authenticate"]
    assert 'error="invalid_token"' in unknown.headers["www-authenticate"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/queues", "/v1/queues/orders", "/v1/queues/nope/messages", "/v1/nothing-here",
        "/v1/messages/01890a5d-ac96-774b-bcce-b302099a8057", "/v1/queues/UPPER/messages",
    ],
)  # fmt: skip
async def test_everything_under_v1_wants_a_key_before_it_says_anything(keys: Keys, path: str) -> None:
    async with guarded(keys) as gateway:
        for method in ("GET", "POST"):
            assert problem(await gateway.client.request(method, path)) == (401, "unauthenticated")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/problems"])
async def test_health_metrics_and_documentation_are_open(keys: Keys, path: str) -> None:
    async with guarded(keys) as gateway:
        assert (await gateway.client.get(path)).status_code == 200


async def test_a_declared_queue_and_an_unknown_one_are_the_same_to_a_key_that_may_use_neither(
    keys: Keys,
) -> None:
    clicks = keys.add("web", queues=["clicks", "web-*"])
    async with guarded(keys) as gateway:
        declared = await gateway.post(queue="orders", headers=clicks)
        unknown = await gateway.post(queue="orderz", headers=clicks)
        asked = [await gateway.client.get(f"/v1/queues/{q}", headers=clicks) for q in ("orders", "orderz")]

        assert problem(declared) == (403, "queue-forbidden")
        assert declared.json()["detail"].replace("orders", "X") == unknown.json()["detail"].replace(
            "orderz", "X"
        )
        assert [problem(a) for a in asked] == [(403, "queue-forbidden")] * 2
        assert problem(await gateway.post(queue="web-site", headers=clicks)) == (404, "queue-not-found")
        assert (await gateway.post(queue="clicks", headers=clicks)).status_code == 202


async def test_no_queue_that_a_key_may_not_use_is_suggested_listed_or_made(keys: Keys) -> None:
    web = keys.add("web", queues=["order", "clicks"])
    registry = QueueRegistry(["orders", "clicks"], declare_on_first_use=True)
    async with running(queues=QueueRegistry(["orders", "clicks"]), keys_file=keys.path) as gateway:
        assert "orders" not in (await gateway.post(queue="order", headers=web)).text
        listed = (await gateway.client.get("/v1/queues", headers=web)).json()["queues"]
        assert [queue["name"] for queue in listed] == ["clicks"]
    async with running(queues=registry, keys_file=keys.path) as gateway:
        assert problem(await gateway.post(queue="mine", headers=web)) == (403, "queue-forbidden")
        assert "mine" not in gateway.broker.queues


async def test_two_tenants_with_the_same_idempotency_key_are_two_messages(keys: Keys) -> None:
    same = {"Idempotency-Key": "order-1"}
    a, b = keys.add("a"), keys.add("b")
    async with guarded(keys) as gateway:
        first = await gateway.post(b"{}", headers=a | same)
        second = await gateway.post(b"{}", headers=b | same)
        again = await gateway.post(b"{}", headers=a | same)

        assert first.json()["id"] != second.json()["id"]
        assert (second.json()["duplicate"], again.json()["duplicate"]) == (False, True)
        assert len(gateway.broker.messages) == 2


async def test_two_keys_of_one_tenant_share_its_idempotency_keys_so_that_keys_can_be_replaced(
    keys: Keys,
) -> None:
    same = {"Idempotency-Key": "order-1"}
    old, new = keys.add("shop"), keys.add("shop-2", tenant="shop")
    before = keys.add("before", tenant="")
    async with running() as gateway:
        without = (await gateway.post(headers=same)).json()["id"]
    async with guarded(keys) as gateway:
        first = (await gateway.post(headers=old | same)).json()
        second = (await gateway.post(headers=new | same)).json()

        assert (first["id"], True) == (second["id"], second["duplicate"])
        assert (await gateway.post(headers=before | same)).json()["id"] == without


async def test_a_message_is_known_only_to_keys_that_may_use_its_queue(keys: Keys) -> None:
    shop, web = keys.add("shop", queues=["orders"]), keys.add("web", queues=["clicks"])
    async with guarded(keys) as gateway:
        location = (await gateway.post(headers=shop)).headers["location"]
        mine = await gateway.client.get(location, headers=shop)
        others = await gateway.client.get(location, headers=web)

        assert mine.json()["accepted"] is True
        assert "accepted" not in others.json()


async def test_a_key_made_while_it_runs_is_let_in_and_a_revoked_one_is_not(keys: Keys) -> None:
    shop = keys.add("shop")
    async with guarded(keys) as gateway:
        assert (await gateway.post(headers=shop)).status_code == 202
        web = keys.add("web")
        keys.revoke("shop")
        await refreshed(gateway)

        assert problem(await gateway.post(headers=shop)) == (401, "unauthenticated")
        assert (await gateway.post(headers=web)).status_code == 202


async def test_the_file_is_looked_at_without_being_asked(keys: Keys) -> None:
    async with guarded(keys) as gateway:
        shop = keys.add("shop")
        parts = gateway.app.parts
        assert parts is not None
        keyring = parts.keyring
        await until(lambda: keyring.names == ["shop"])
        assert (await gateway.post(headers=shop)).status_code == 202


@pytest.mark.parametrize("broken", ["{", '{"keys": [{"name": "x"}]}', "gone"])
async def test_a_file_that_breaks_keeps_the_last_good_keys_and_is_told_once(keys: Keys, broken: str) -> None:
    shop = keys.add("shop")
    good = keys.path.read_bytes()
    async with guarded(keys) as gateway:
        if broken == "gone":
            keys.path.unlink()
        else:
            keys.path.write_text(broken)
        with capture_logs() as lines:
            await refreshed(gateway)
            await refreshed(gateway)

        assert (await gateway.post(headers=shop)).status_code == 202
        assert [line["event"] for line in lines if line["log_level"] == "error"] == [
            "the API keys cannot be read again; those read before stay valid"
        ]
        keys.path.write_bytes(good)
        web = keys.add("web")
        await refreshed(gateway)
        assert (await gateway.post(headers=web)).status_code == 202


async def test_an_expired_key_is_refused_even_if_it_was_just_used(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    shop = keys.add("shop", expires_at=end)
    async with guarded(keys) as gateway:
        assert (await gateway.post(headers=shop)).status_code == 202
        monkeypatch.setattr("gateway.keyring.time.time", lambda: end.timestamp())
        assert problem(await gateway.post(headers=shop)) == (401, "unauthenticated")


async def test_a_keys_own_body_limit_holds_with_and_without_a_length(keys: Keys) -> None:
    small = keys.add("small", max_body_bytes=10)
    async with guarded(keys) as gateway:

        async def chunks() -> AsyncIterator[bytes]:
            yield b"x" * 6
            yield b"x" * 6

        told = await gateway.post(b"x" * 11, headers=small)
        streamed = await gateway.client.post("/v1/queues/orders/messages", content=chunks(), headers=small)

        assert [problem(a) for a in (told, streamed)] == [(413, "body-too-large")] * 2
        assert told.json()["limit"] == 10
        assert (await gateway.post(b"x" * 10, headers=small)).status_code == 202
        assert gateway.app.parts is not None
        assert gateway.app.parts.ingest._admission.size == 0


async def test_refusals_are_counted_by_key(keys: Keys) -> None:
    web = keys.add("web", queues=["clicks"])
    async with guarded(keys) as gateway:
        await gateway.post(headers=web)
        text = (await gateway.client.get("/metrics")).text

        assert 'forebay_gateway_refused_by_key_total{key="web",problem="queue-forbidden"} 1.0' in text


# ---- quotas


async def test_beyond_its_rate_a_key_is_429_with_the_time_to_wait_and_another_goes_on(keys: Keys) -> None:
    slow, other = keys.add("slow", rate=0.1, burst=2), keys.add("other")
    async with guarded(keys) as gateway:
        answers = [await gateway.post(headers=slow) for _ in range(3)]

        assert [a.status_code for a in answers] == [202, 202, 429]
        assert answers[0].headers["ratelimit-policy"] == '"messages";q=2;w=20'
        assert answers[0].headers["ratelimit"] == '"messages";r=1;t=10'
        refused = answers[2]
        assert refused.headers["ratelimit"] == '"messages";r=0;t=20'
        assert refused.headers["retry-after"] == "10"
        assert refused.json()["violated-policies"] == ["messages"]
        free = await gateway.post(headers=other)
        assert free.status_code == 202
        assert "ratelimit" not in free.headers


async def test_bytes_are_paid_off_after_a_body_that_was_larger_than_what_was_left(keys: Keys) -> None:
    slow = keys.add("slow", bytes_per_second=100)
    async with guarded(keys) as gateway:
        first = await gateway.post(b"x" * 1100, headers=slow)
        second = await gateway.post(b"x", headers=slow)

        assert first.status_code == 202
        assert first.headers["ratelimit-policy"] == '"bytes";q=100;w=1;qu="content-bytes"'
        assert problem(second) == (429, "quota-exceeded")
        assert second.json()["violated-policies"] == ["bytes"]
        assert second.headers["retry-after"] in ("10", "11")


async def test_what_was_used_up_stays_used_up_when_the_file_changes(keys: Keys) -> None:
    slow = keys.add("slow", rate=0.001, burst=1)
    async with guarded(keys) as gateway:
        assert (await gateway.post(headers=slow)).status_code == 202
        keys.add("other")
        await refreshed(gateway)
        assert (await gateway.post(headers=slow)).status_code == 429


async def test_one_tenant_at_its_share_is_429_while_another_goes_on(keys: Keys) -> None:
    greedy, modest = keys.add("greedy"), keys.add("modest")
    async with guarded(keys, max_in_flight=6) as gateway:
        gateway.broker.gate.clear()
        held = [asyncio.create_task(gateway.post(headers=greedy)) for _ in range(3)]
        parts = gateway.app.parts
        assert parts is not None
        ingest = parts.ingest
        await until(lambda: ingest._admission.count == 3)
        refused = await gateway.post(headers=greedy)
        other = asyncio.create_task(gateway.post(headers=modest))
        await until(lambda: ingest._admission.count == 4)
        gateway.broker.gate.set()

        assert problem(refused) == (429, "quota-exceeded")
        assert refused.json()["violated-policies"] == ["in-flight"]
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await answer).status_code for answer in (*held, other)] == [202] * 4
        assert (await gateway.post(headers=greedy)).status_code == 202


async def test_an_only_tenant_may_have_all_of_it_and_too_much_is_our_trouble(keys: Keys) -> None:
    shop = keys.add("shop")
    async with guarded(keys, max_in_flight=2) as gateway:
        gateway.broker.gate.clear()
        held = [asyncio.create_task(gateway.post(headers=shop)) for _ in range(2)]
        parts = gateway.app.parts
        assert parts is not None
        ingest = parts.ingest
        await until(lambda: ingest._admission.count == 2)
        assert problem(await gateway.post(headers=shop)) == (503, "overloaded")
        gateway.broker.gate.set()
        assert [(await answer).status_code for answer in held] == [202] * 2


async def test_a_share_that_is_full_because_publishes_fail_is_our_trouble(keys: Keys) -> None:
    shop, _ = keys.add("shop"), keys.add("web")
    broker = ScriptedBroker()
    broker.failures.append(BrokerUnavailable("away"))
    async with running(broker, keys_file=keys.path, max_in_flight=2) as gateway:
        assert (await gateway.post(headers=shop)).status_code == 503
        broker.gate.clear()
        held = asyncio.create_task(gateway.post(headers=shop))
        parts = gateway.app.parts
        assert parts is not None
        ingest = parts.ingest
        await until(lambda: ingest._admission.count == 1)
        assert problem(await gateway.post(headers=shop)) == (503, "overloaded")
        broker.gate.set()
        await held


# ---- starting


def test_a_missing_file_stops_the_start_and_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there; `forebay api-keys create NAME` makes it"):
        bind(GatewaySettings(port=0, keys_file=tmp_path / "keys.json"))


SECRET = "fbk_" + "5ec2e7" * 11


@pytest.mark.parametrize(
    "place", [{"sha256": SECRET}, {"name": SECRET}, {"tenant": SECRET}, {"queues": [SECRET]}]
)
def test_a_broken_file_stops_the_start_without_showing_what_is_in_it(
    place: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "shop", "sha256": "0" * 64, "queues": ["*"]} | place]}))
    with pytest.raises(SettingsError, match=rf"keys\.0\.{next(iter(place))}") as error:
        bind(GatewaySettings(port=0, keys_file=path))
    assert SECRET not in str(error.value)


def test_with_keys_it_may_listen_beyond_loopback_and_without_the_error_names_the_command(keys: Keys) -> None:
    keys.add("shop")
    with bind(GatewaySettings(host="0.0.0.0", port=0, keys_file=keys.path)) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"
    with pytest.raises(SettingsError, match="forebay api-keys create"):
        bind(GatewaySettings(host="0.0.0.0", port=0))


def test_a_file_without_keys_starts_and_says_what_that_means(keys: Keys) -> None:
    with capture_logs() as lines:
        bind(GatewaySettings(port=0, keys_file=keys.path)).close()
    assert "every request is answered 401" in lines[0]["event"]


async def test_a_forward_target_and_none_are_the_same_to_a_key_that_may_use_neither(keys: Keys) -> None:
    web, billing = keys.add("web", queues=["clicks"]), keys.add("billing", queues=["billing"])
    all_queues = keys.add("all")
    async with running(
        queues=QueueRegistry(["billing", "clicks"]),
        targets={"books": Target(queue="billing", methods=("POST",))},
        keys_file=keys.path,
    ) as gateway:

        async def post(target: str, headers: dict[str, str]) -> httpx2.Response:
            return await gateway.client.post(f"/v1/forward/{target}/x", content=b"{}", headers=headers)

        there, not_there = await post("books", web), await post("boots", web)
        assert problem(there) == problem(not_there) == (403, "queue-forbidden")
        assert there.text.replace("books", "X") == not_there.text.replace("boots", "X")
        assert (await post("books", billing)).status_code == 202
        assert (await post("boots", all_queues)).status_code == 404


async def test_what_the_database_knows_is_told_to_keys_for_its_queue(keys: Keys, tmp_path: Path) -> None:
    def database() -> Database:
        return Database(f"sqlite:///{tmp_path}/forebay.db")

    stored, handled, mapped = delivery(), delivery(), delivery()
    own = database()
    migrate(own)
    MessageStore(own).write([stored])
    with own.begin() as connection:
        claim(connection, "handler:orders", [handled])
        claim(connection, "table:orders", [mapped])
    own.dispose()
    shop, web = keys.add("shop", queues=["orders"]), keys.add("web", queues=["clicks"])
    everything = keys.add("all")
    async with guarded(keys, database=database) as gateway:

        async def state(found: Delivery, headers: dict[str, str]) -> str:
            answer = await gateway.client.get(f"/v1/messages/{found.message.id}", headers=headers)
            return str(answer.json().get("state") or problem(answer)[1])

        assert [await state(stored, who) for who in (everything, shop)] == ["stored"] * 2
        assert [await state(handled, who) for who in (everything, shop)] == ["done"] * 2
        assert [await state(found, web) for found in (stored, handled, mapped)] == ["not-seen-yet"] * 3
        # Of this one the database knows no queue.
        assert [await state(mapped, who) for who in (everything, shop)] == ["done", "not-seen-yet"]
