"""POST /v1/queues/{queue}/batch: one result per item, in order, and true."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from forebay.brokers.api import PublishResult
from forebay.errors import BrokerUnavailable, MessageTooLarge, PublishUnconfirmed, QueueFull
from forebay.ids import id_from_key
from forebay.message import Message
from gateway.batches import intake
from gateway.batches.results import Results, Span
from gateway.problems import KINDS
from tests.unit.gateway.support import Running, ScriptedBroker, running
from tests.waiting import until

NDJSON = "application/x-ndjson"
DESCRIBED = "application/vnd.forebay.batch+ndjson"


async def post(gateway: Running, body: Any, kind: str = NDJSON, **headers: str) -> httpx2.Response:
    fields = {"Content-Type": kind} | {n.replace("_", "-"): v for n, v in headers.items()}
    return await gateway.client.post("/v1/queues/orders/batch", content=body, headers=fields)


def statuses(answer: httpx2.Response) -> list[str]:
    return [result["status"] for result in answer.json()["results"]]


def bodies(gateway: Running) -> list[bytes]:
    return [message.body for message in gateway.broker.messages]


def nothing_held(gateway: Running) -> bool:
    parts = gateway.app.parts
    assert parts is not None
    admission = parts.ingest._admission
    return (admission.count, admission.size) == (0, 0) and not parts.ingest.bodies_on_their_way


# ---- what is stored


async def test_every_line_is_a_message_with_its_exact_bytes() -> None:
    async with running() as gateway:
        answer = await post(gateway, b'{"n": 1.00}\n\n  {"n":2}\r\nnot even JSON\n"last"')

        assert answer.status_code == 202
        assert bodies(gateway) == [b'{"n": 1.00}', b'  {"n":2}', b"not even JSON", b'"last"']
        assert {m.content_type for m in gateway.broker.messages} == {"application/json"}
        said = answer.json()
        assert said["counts"] == {"ok": 4, "duplicate": 0, "rejected": 0, "retry": 0}
        assert [r["id"] for r in said["results"]] == [m.id for m in gateway.broker.messages]
        assert {r["durability"] for r in said["results"]} == {"synced"}
        assert nothing_held(gateway)


async def test_every_element_of_an_array_is_a_message_with_its_exact_bytes() -> None:
    async with running() as gateway:
        answer = await post(gateway, b' [ {"a": [1.0, "]"] } , "x\\",]" ,tru, null]', "application/json")

        assert statuses(answer) == ["ok", "ok", "rejected", "ok"]
        assert (answer.status_code, answer.json()["results"][2]["type"]) == (207, "/problems/invalid-item")
        assert bodies(gateway) == [b'{"a": [1.0, "]"] }', b'"x\\",]"', b"null"]


async def test_a_described_item_says_what_headers_would() -> None:
    lines = [
        b'{"ordering_key": "c-1", "body": {"a": 1.0, "body": 2}, "headers": {"Source": "shop"}}',
        b'{"body_base64": "AAH/", "content_type": "image/png", "delay": 30, "ttl": "15m"}',
        b'{"body_base64": "AAH/", "idempotency_key": "own"}',
        b'{"body": 1, "b\\u006fdy": "the last one counts"}',
    ]
    async with running() as gateway:
        answer = await post(
            gateway, b"\n".join(lines), DESCRIBED, Forebay_Ordering_Key="c-0", Forebay_Meta_Region="eu"
        )

        assert statuses(answer) == ["ok"] * 4
        first, second, third, last = gateway.broker.messages
        assert (first.body, first.content_type, first.key) == (
            b'{"a": 1.0, "body": 2}',
            "application/json",
            "c-1",
        )
        assert first.headers == {"region": "eu", "source": "shop"}
        assert (second.body, second.content_type, second.key) == (b"\x00\x01\xff", "image/png", "c-0")
        assert second.not_before == second.accepted_at + timedelta(seconds=30)
        assert second.expires_at == second.accepted_at + timedelta(minutes=15)
        assert (third.id, third.content_type) == (
            id_from_key("", "orders", "own"),
            "application/octet-stream",
        )
        assert last.body == b'"the last one counts"'


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"{", "invalid-item"),
        (b"1", "invalid-item"),
        (b"{}", "invalid-item"),
        (b'{"body": 1, "body_base64": "AA=="}', "invalid-item"),
        (b'{"body_base64": "?"}', "invalid-item"),
        (b'{"body_base64": 1}', "invalid-item"),
        (b'{"body": 1, "color": "red"}', "invalid-item"),
        (b'{"body": 1, "delay": true}', "invalid-item"),
        (b'{"body": 1, "headers": {"a": 1}}', "invalid-item"),
        (b'{"body": 1, "headers": ["a"]}', "invalid-item"),
        (b'{"body": 1, "delay": "soon"}', "invalid-header"),
        (b'{"body": 1, "ttl": 0}', "invalid-header"),
        (b'{"body": 1, "delay": 60, "ttl": 30}', "invalid-header"),
        (b'{"body": 1, "idempotency_key": "with space"}', "invalid-header"),
        (b'{"body": 1, "ordering_key": ""}', "invalid-header"),
        (b'{"body": 1, "ordering_key": "a\\nb"}', "invalid-header"),
        (b'{"body": 1, "headers": {"authorization": "Bearer x"}}', "invalid-header"),
        (b'{"body": 1, "headers": {"a": "x\\r\\ny: z"}}', "invalid-header"),
        (b'{"body": 1, "headers": {"a\\n": "x"}}', "invalid-header"),
        (b'{"body": 1, "headers": {"a": "%s"}}' % (b"x" * 17_000), "headers-too-large"),
    ],
)
async def test_a_bad_item_is_told_why_and_hurts_only_itself(line: bytes, kind: str) -> None:
    async with running() as gateway:
        answer = await post(gateway, line + b'\n{"body": "good"}', DESCRIBED)

        bad, good = answer.json()["results"]
        assert (answer.status_code, bad["status"], bad["type"]) == (207, "rejected", f"/problems/{kind}")
        assert bad["detail"]
        assert "id" not in bad
        assert good["status"] == "ok"
        assert bodies(gateway) == [b'"good"']


async def test_headers_of_the_request_are_those_of_every_item() -> None:
    async with running() as gateway:
        await post(
            gateway,
            b"1\n2",
            Forebay_Ordering_Key="k",
            Forebay_Delay="30",
            Forebay_TTL="1m",
            Forebay_Meta_Source="shop",
        )

        for message in gateway.broker.messages:
            assert (message.key, message.headers) == ("k", {"source": "shop"})
            assert message.not_before == message.accepted_at + timedelta(seconds=30)
            assert message.expires_at == message.accepted_at + timedelta(minutes=1)


async def test_a_compressed_batch_is_inflated_as_it_arrives() -> None:
    lines = [b'{"n": %d}' % n for n in range(20_000)]
    async with running(max_batch_items=20_000) as gateway:
        answer = await post(gateway, gzip.compress(b"\n".join(lines)), Content_Encoding="gzip")

        assert answer.status_code == 202
        assert bodies(gateway) == lines


# ---- statuses


async def test_all_rejected_is_422() -> None:
    async with running() as gateway:
        answer = await post(gateway, b"[tru, fals]", "application/json")

        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/batch-rejected")
        assert statuses(answer) == ["rejected"] * 2


async def test_an_empty_batch_is_accepted() -> None:
    async with running() as gateway:
        answer = await post(gateway, b"[]", "application/json")

        assert (answer.status_code, answer.json()["results"]) == (202, [])


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), PublishUnconfirmed("no answer")])
async def test_nothing_stored_because_of_us_is_503(error: BrokerUnavailable | PublishUnconfirmed) -> None:
    broker = ScriptedBroker()
    broker.failures = [error]
    async with running(broker) as gateway:
        answer = await post(gateway, b"1\n2\n3")

        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["counts"]["retry"] == 3
        assert statuses(answer) == ["retry"] * 3
        assert nothing_held(gateway)


async def test_a_mixture_is_207_with_each_items_own_word() -> None:
    errors = {
        b"2": QueueFull("full"),
        b"3": MessageTooLarge(1, 0),
        b"4": PublishUnconfirmed("late"),
    }

    def some(message: Message) -> PublishResult:
        error = errors.get(message.body)
        return PublishResult(message_id=message.id, error=error, durability=None if error else "synced")

    broker = ScriptedBroker()
    broker.failures = [some]
    async with running(broker) as gateway:
        answer = await post(gateway, b"1\n2\n3\n4\n5")

        assert answer.status_code == 207
        assert [(r["status"], r.get("type")) for r in answer.json()["results"]] == [
            ("ok", None),
            ("retry", "/problems/queue-full"),
            ("rejected", "/problems/body-too-large"),
            ("retry", "/problems/outcome-unknown"),
            ("ok", None),
        ]
        assert "retry-after" in answer.headers


async def test_minimal_answers_have_failures_with_their_numbers() -> None:
    async with running() as gateway:
        answer = await post(gateway, b"[1, tru, 3]", "application/json", Prefer="return=minimal")

        assert answer.headers["preference-applied"] == "return=minimal"
        assert answer.json()["counts"] == {"ok": 2, "duplicate": 0, "rejected": 1, "retry": 0}
        [failure] = answer.json()["results"]
        assert (failure["item"], failure["status"]) == (1, "rejected")


async def test_more_items_than_allowed_are_413_and_the_ones_before_are_told() -> None:
    async with running(max_batch_items=1_000) as gateway:
        answer = await post(gateway, b"\n".join(b"%d" % n for n in range(1_500)))

        said = answer.json()
        assert (answer.status_code, said["type"], said["limit"]) == (413, "/problems/batch-too-large", 1_000)
        assert (said["items"], said["counts"]["ok"]) == (1_000, 1_000)
        assert bodies(gateway) == [b"%d" % n for n in range(1_000)]
        assert nothing_held(gateway)


async def test_exactly_as_many_as_allowed_are_taken() -> None:
    async with running(max_batch_items=3) as gateway:
        assert (await post(gateway, b"1\n2\n3\n")).status_code == 202
        assert (await post(gateway, b"[1,2,3]", "application/json")).status_code == 202


async def test_an_array_that_breaks_is_400_with_the_elements_before() -> None:
    async with running() as gateway:
        answer = await post(gateway, b"[1, 2, 3", "application/json")

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/broken-batch")
        assert answer.json()["counts"]["ok"] == 2
        assert bodies(gateway) == [b"1", b"2"]
        assert nothing_held(gateway)


async def test_a_compressed_batch_that_is_cut_off_is_400_and_its_last_line_not_stored() -> None:
    async with running() as gateway:
        whole = gzip.compress(b"1\n2\n3", mtime=0)
        answer = await post(gateway, whole[:-4], Content_Encoding="gzip")

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/corrupt-body")
        assert bodies(gateway) == [b"1", b"2"]


async def test_an_item_that_is_too_large_hurts_only_itself() -> None:
    async with running(max_body_bytes=100) as gateway:
        answer = await post(gateway, b"1\n" + b"x" * 101 + b"\n" + b"y" * 100)

        assert statuses(answer) == ["ok", "rejected", "ok"]
        assert answer.json()["results"][1]["type"] == "/problems/body-too-large"
        assert nothing_held(gateway)


@pytest.mark.parametrize(
    ("kind", "status"), [("text/plain", 415), ("", 415), ("application/x-ndjson; charset=utf-8", 202)]
)
async def test_the_content_type_says_what_kind_of_batch_it_is(kind: str, status: int) -> None:
    async with running() as gateway:
        answer = await post(gateway, b"1", kind)

        assert answer.status_code == status
        assert status == 202 or "application/x-ndjson" in answer.headers["accept"]


async def test_other_methods_and_queues_are_refused_as_ever() -> None:
    async with running() as gateway:
        got = await gateway.client.get("/v1/queues/orders/batch")
        lost = await gateway.client.post("/v1/queues/nowhere/batch", content=b"1")
        header = await post(gateway, b"1", Forebay_Delay="60", Forebay_TTL="30")

        assert (got.status_code, got.headers["allow"]) == (405, "POST")
        assert lost.status_code == 404
        assert (header.status_code, header.json()["type"]) == (400, "/problems/invalid-header")


# ---- idempotency


async def test_a_batch_sent_again_is_the_same_messages() -> None:
    """`<key>/n` is item n's key, so that a batch that was cut off can be sent again as a whole."""
    async with running() as gateway:
        half = await post(gateway, b"1\n2\n", Idempotency_Key="b")
        whole = await post(gateway, b"1\n2\n3\n4\n", Idempotency_Key="b")

        assert statuses(half) == ["ok"] * 2
        assert statuses(whole) == ["duplicate"] * 2 + ["ok"] * 2
        assert whole.status_code == 202
        assert [m.id for m in gateway.broker.messages] == [
            id_from_key("", "orders", f"b/{n}") for n in range(4)
        ]


async def test_the_same_key_with_another_body_is_rejected() -> None:
    async with running() as gateway:
        await post(gateway, b"1\n2", Idempotency_Key="b")
        answer = await post(gateway, b"1\nother", Idempotency_Key="b")

        assert statuses(answer) == ["duplicate", "rejected"]
        assert answer.json()["results"][1]["type"] == "/problems/idempotency-conflict"
        assert bodies(gateway) == [b"1", b"2"]


async def test_two_equal_batches_at_once_have_one_effect_and_both_are_202() -> None:
    async with running() as gateway:
        gateway.broker.gate.clear()
        first = asyncio.create_task(post(gateway, b"1\n2\n3", Idempotency_Key="b"))
        await gateway.broker.began.wait()
        second = asyncio.create_task(post(gateway, b"1\n2\n3", Idempotency_Key="b"))
        single = asyncio.create_task(gateway.post(b"1", headers={"Idempotency-Key": "b/0"}))
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: len(parts.ingest._commit._watched) == 3)
        gateway.broker.gate.set()

        assert statuses(await first) == ["ok"] * 3
        assert statuses(await second) == ["duplicate"] * 3
        # The content type is part of what must be equal.
        assert (await single).status_code == 422
        assert bodies(gateway) == [b"1", b"2", b"3"]
        assert nothing_held(gateway)


async def test_the_same_key_twice_in_one_batch_is_one_message() -> None:
    line = b'{"body": 1, "idempotency_key": "k"}\n'
    async with running() as gateway:
        answer = await post(gateway, line + line, DESCRIBED)

        assert statuses(answer) == ["ok", "duplicate"]
        assert bodies(gateway) == [b"1"]


async def test_what_failed_can_be_sent_again_under_the_same_key() -> None:
    broker = ScriptedBroker()
    broker.failures = [BrokerUnavailable("away")]
    async with running(broker) as gateway:
        await post(gateway, b"1\n2", Idempotency_Key="b")
        answer = await post(gateway, b"1\n2", Idempotency_Key="b")

        assert statuses(answer) == ["ok"] * 2


# ---- durability


async def test_a_durability_that_is_missed_is_told_per_item() -> None:
    def unsafe(message: Message) -> PublishResult:
        return PublishResult(message_id=message.id, durability="unsynced")

    broker = ScriptedBroker()
    broker.failures = [unsafe]
    async with running(broker) as gateway:
        answer = await post(gateway, b"1", Prefer="durability=synced")

        [result] = answer.json()["results"]
        assert answer.status_code == 503
        assert (result["status"], result["type"]) == ("retry", "/problems/durability-unavailable")
        assert (result["durability"], len(result["id"])) == ("unsynced", 36)


async def test_a_durability_out_of_reach_is_refused_at_once() -> None:
    async with running() as gateway:
        answer = await post(gateway, b"1", Prefer="durability=replicated")

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/durability-unavailable")


# ---- memory, time, order


async def test_a_batch_larger_than_the_budget_flows_through_it() -> None:
    async def upload() -> AsyncIterator[bytes]:
        for n in range(200):
            yield b"%04d" % n + b"x" * 9_996 + b"\n"

    async with running(max_body_bytes=20_000, max_in_flight_bytes=200_000) as gateway:
        most = 0
        parts = gateway.app.parts
        assert parts is not None
        admission = parts.ingest._admission
        original = admission.grow

        def grow(size: int) -> bool:
            nonlocal most
            taken = original(size)
            most = max(most, admission.size)
            return taken

        type(admission).grow, before = lambda self, size: grow(size), type(admission).grow  # type: ignore[method-assign]
        try:
            original = lambda size: before(admission, size)  # noqa: E731
            answer = await post(gateway, upload())
        finally:
            type(admission).grow = before  # type: ignore[method-assign]

        assert answer.status_code == 202
        assert [body[:4] for body in bodies(gateway)] == [b"%04d" % n for n in range(200)]
        assert most <= 200_000
        assert nothing_held(gateway)


async def test_short_lines_count_for_the_memory_that_they_take() -> None:
    async with running(max_body_bytes=1_000, max_in_flight_bytes=40_000) as gateway:
        gateway.broker.gate.clear()
        sending = asyncio.create_task(post(gateway, b"1\n" * 5_000))
        await gateway.broker.began.wait()
        held = sum(len(messages) for _, messages in gateway.broker.publishes)
        gateway.broker.gate.set()

        assert 0 < held <= 40_000 // intake.ITEM_COST
        assert (await sending).json()["counts"]["ok"] == 5_000
        assert nothing_held(gateway)


async def test_without_room_items_are_to_be_sent_again() -> None:
    async with running(max_body_bytes=1_000, max_in_flight_bytes=1_000) as gateway:
        gateway.broker.gate.clear()
        hold = asyncio.create_task(gateway.post(b"x" * 900))
        await gateway.broker.began.wait()
        answer = await post(gateway, b"y" * 50 + b"\n" + b"z" * 500 + b"\n")
        gateway.broker.gate.set()

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/overloaded")
        assert statuses(answer) == ["retry"] * 2
        assert (await hold).status_code == 202
        assert nothing_held(gateway)


async def test_a_batch_that_stalls_gives_way_to_others() -> None:
    async with running(max_body_bytes=1_000, max_in_flight_bytes=1_000) as gateway:
        slow = await gateway.connect()
        await slow.send(
            b"POST /v1/queues/orders/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            b"Content-Length: 905\r\n\r\n1\n" + b"x" * 800
        )
        parts = gateway.app.parts
        assert parts is not None
        arriving = parts.ingest.bodies_on_their_way
        await until(lambda: len(arriving) == 1)
        arriving._now = lambda: asyncio.get_running_loop().time() + 10  # it has been slow
        other = await gateway.post(b"y" * 900)
        await slow.send(b"x" * 100 + b"\n2\n")
        answer = await slow.answer()

        assert other.status_code == 202
        assert answer.status == 207
        assert answer.body.count(b'"status":"ok"') == 2
        assert answer.body.count(b"/problems/overloaded") == 1
        assert bodies(gateway).count(b"2") == 1


async def test_a_body_that_stalls_is_408_with_what_was_stored() -> None:
    async with running(body_timeout=0.2) as gateway:
        slow = await gateway.connect()
        await slow.send(
            b"POST /v1/queues/orders/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            b"Content-Length: 100\r\n\r\n1\n2\n3"
        )
        answer = await slow.answer()

        assert (answer.status, answer.problem["type"]) == (408, "/problems/body-timeout")
        assert answer.problem["counts"]["ok"] == 2
        assert bodies(gateway) == [b"1", b"2"]


async def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    async with running() as gateway:
        leaving = await gateway.connect()
        await leaving.send(
            b"POST /v1/queues/orders/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            b"Content-Length: 100\r\n\r\n1\n2\n3"
        )
        await until(lambda: len(bodies(gateway)) == 2)
        leaving.close()
        await until(lambda: nothing_held(gateway))

        assert bodies(gateway) == [b"1", b"2"]
        labels = {"queue": "orders", "outcome": "accepted"}
        await until(lambda: gateway.registry.get_sample_value("forebay_gateway_messages_total", labels) == 2)


async def test_a_batch_that_is_cut_off_by_a_stop_says_what_is_known_of_each_item() -> None:
    """What is being published nobody knows; what was not sent is certainly not stored."""
    async with running(shutdown_timeout=0.5) as gateway:
        gateway.broker.gate.clear()
        sending = asyncio.create_task(post(gateway, b"\n".join(b"%d" % n for n in range(2_000))))
        await gateway.broker.began.wait()
        gateway.stop.set()
        answer = await sending

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        kinds = [r["type"] for r in answer.json()["results"]]
        sent = sum(len(messages) for _, messages in gateway.broker.publishes)
        assert kinds == ["/problems/outcome-unknown"] * sent + ["/problems/not-sent"] * (len(kinds) - sent)
        assert len(kinds) > sent


async def test_a_broker_that_takes_all_its_time_is_not_asked_again_and_again() -> None:
    """Two publishes run at once: they are all that a stalled broker is given of a long batch."""
    async with running(request_timeout=0.2) as gateway:
        gateway.broker.gate.clear()
        answer = await post(gateway, b"\n".join(b"%d" % n for n in range(5_000)))

        counts = answer.json()["counts"]
        assert (answer.status_code, counts["retry"]) == (503, 5_000)
        assert len(gateway.broker.publishes) <= 2
        kinds = {r["type"] for r in answer.json()["results"]}
        assert kinds == {"/problems/outcome-unknown", "/problems/not-sent"}


async def test_nothing_of_an_ordering_key_is_sent_after_what_failed() -> None:
    broker = ScriptedBroker()
    broker.failures = [QueueFull("full")]
    lines = [b'{"body": %d, "ordering_key": "%s"}' % (n, b"a" if n < 600 else b"b") for n in range(1_000)]
    broker.failures = [
        lambda m: PublishResult(message_id=m.id, error=QueueFull("full"))  # the first 500
    ]
    async with running(broker) as gateway:
        answer = await post(gateway, b"\n".join(lines), DESCRIBED)

        assert bodies(gateway) == [b"%d" % n for n in range(600, 1_000)]
        assert statuses(answer) == ["retry"] * 600 + ["ok"] * 400
        assert answer.json()["results"][599]["type"] == "/problems/not-sent"


async def test_a_bomb_of_line_ends_is_stopped() -> None:
    async with running() as gateway:
        bomb = gzip.compress(b"1\n" + b"\n" * 2**25)
        # By this process's own time: the client is as patient as a busy machine asks for.
        gateway.client.timeout, before = 60, time.process_time()
        answer = await post(gateway, bomb, Content_Encoding="gzip")

        assert time.process_time() - before <= 10
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
        assert answer.json()["counts"]["ok"] == 1
        assert nothing_held(gateway)


def test_a_result_takes_at_most_40_bytes() -> None:
    results = Results()
    code = results.stored("ok", "synced")
    count = 50_000
    ids = [f"{n:036d}" for n in range(intake.CHUNK_ITEMS)]
    tracemalloc.start()
    for first in range(0, count, len(ids)):
        results.add(Span(first, "".join(ids), bytearray((code,)) * len(ids)))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert used / count <= 40


def test_more_different_failures_than_a_byte_can_tell_are_told_by_their_kind() -> None:
    results = Results()
    kind = KINDS["invalid-item"]
    codes = bytearray(results.failed(kind, f"reason {n}") for n in range(1_000))
    results.add(Span(0, " " * 36 * 1_000, codes))

    text = b"".join(results.render(failures_only=False))

    assert results.counts()["rejected"] == 1_000
    assert text.count(b'"detail":"reason ') == 200
    assert text.count(kind.title.encode()) == 800


async def test_items_are_counted_by_what_became_of_them() -> None:
    async with running() as gateway:
        await post(gateway, b"[1, tru, 3]", "application/json", Idempotency_Key="b")
        await post(gateway, b"[1, tru, 3]", "application/json", Idempotency_Key="b")

        def count(outcome: str) -> float | None:
            return gateway.registry.get_sample_value(
                "forebay_gateway_messages_total", {"queue": "orders", "outcome": outcome}
            )

        assert [count(o) for o in ("accepted", "duplicate", "invalid-item")] == [2, 2, 2]
