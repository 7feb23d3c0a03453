"""Every error is a problem document with a page behind it, and every broker error has its answer."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator

import orjson
import pytest
import structlog.testing

from forebay import errors
from gateway import problems
from gateway.problems import BROKER_ERRORS, KINDS, broker_problem, kind_of, problem
from tests.unit.gateway.support import ScriptedBroker, running

ALL_BROKER_ERRORS = [
    error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.BrokerError)
]


@pytest.mark.parametrize("error", ALL_BROKER_ERRORS)
def test_every_broker_error_has_its_own_line_in_the_table(error: type[errors.BrokerError]) -> None:
    assert error in BROKER_ERRORS


def test_only_what_the_client_can_change_is_a_4xx() -> None:
    fault_of_the_client = {e for e, kind in BROKER_ERRORS.items() if kind.status < 500}

    assert fault_of_the_client == {errors.QueueNotFound, errors.MessageTooLarge}


def test_a_drivers_own_error_is_answered_as_the_nearest_we_know() -> None:
    class Throttled(errors.QueueFull):
        pass

    assert kind_of(Throttled()) is problems.QUEUE_FULL


def test_a_brokers_words_stay_out_of_the_answer() -> None:
    answer = broker_problem(errors.BrokerUnavailable("amqp://guest:secret@10.0.0.7 refused"), queue="orders")

    assert b"secret" not in answer.body


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_what_passes_always_says_when_to_come_back(kind: problems.Kind) -> None:
    answer = problem(kind, "because")
    document = orjson.loads(answer.body)

    assert document.keys() >= {"type", "title", "status", "detail", "retryable"}
    assert (b"retry-after" in dict(answer.headers)) == (
        kind.status in (429, 503) or kind.name in ("not-seen-yet", "no-answer")
    )


async def test_every_problem_has_a_page() -> None:
    async with running() as gateway:
        overview = await gateway.client.get("/problems")
        for kind in KINDS.values():
            page = await gateway.client.get(kind.type)

            assert page.status_code == 200
            assert page.headers["content-type"].startswith("text/html")
            assert kind.name in page.text
            assert kind.type in overview.text


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/problems/none", 404, "not-found"),
        ("GET", "/docs/assets/none.js", 404, "not-found"),
        ("GET", "/docs/assets/..%2f..%2fcore.py", 400, "invalid-request"),
        ("POST", "/livez", 405, "method-not-allowed"),
        ("DELETE", "/v1/queues/orders", 405, "method-not-allowed"),
        ("GET", "/v1/queues/Nope", 400, "invalid-queue-name"),
        ("GET", "/v1/queues/nope", 404, "queue-not-found"),
        ("GET", "/v1/messages/nope", 400, "invalid-request"),
    ],
)
async def test_the_frameworks_own_errors_are_problems_too(
    method: str, path: str, status: int, name: str
) -> None:
    async with running() as gateway:
        answer = await gateway.client.request(method, path)

        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"/problems/{name}"
        assert ("allow" in answer.headers) == (status == 405)


async def test_a_bug_is_500_without_a_traceback_and_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as gateway:
        parts = gateway.app.parts
        assert parts is not None

        def bug(*_: object) -> None:
            raise ZeroDivisionError("a detail of ours")

        monkeypatch.setattr(type(parts.ingest), "admit", bug)
        monkeypatch.setattr(type(parts.status), "answer", bug)
        with structlog.testing.capture_logs() as logs:
            answers = [
                await gateway.post(b"a secret body", headers={"Authorization": "Bearer a-secret"}),
                await gateway.client.get("/v1/messages/x"),
            ]

        for answer in answers:
            assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
            assert "detail of ours" not in answer.text
        assert [entry["event"] for entry in logs] == ["request failed unexpectedly"] * 2
        assert "secret" not in str(logs)


async def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends() -> None:
    broker = ScriptedBroker()
    async with running(broker) as gateway:
        broker.failures += [errors.BrokerUnavailable("refused")] * 3
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                await gateway.post(b"a secret body")

        assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == [
            "publishes fail",
            "publishes succeed again",
        ]
        assert "secret" not in str(logs)


async def test_a_queue_in_trouble_says_nothing_when_another_one_works() -> None:
    broker = ScriptedBroker()
    async with running(broker) as gateway:
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                broker.failures.append(errors.QueueFull("at its limit"))
                assert (await gateway.post(queue="orders")).status_code == 503
                assert (await gateway.post(queue="clicks")).status_code == 202
            await gateway.post(queue="orders")

        said = [(entry["event"], entry["queue"]) for entry in logs if entry["log_level"] != "debug"]
        assert said == [("publishes fail", "orders"), ("publishes succeed again", "orders")]


async def test_ids_of_what_was_published_are_logged_for_debugging() -> None:
    async with running() as gateway:
        with structlog.testing.capture_logs() as logs:
            sent = (await gateway.post(b"a secret body")).json()["id"]

        assert [entry["ids"] for entry in logs if entry["event"] == "published"] == [[sent]]
        assert "secret" not in str(logs)


async def test_figures_tell_how_long_each_stage_took() -> None:
    async with running() as gateway:

        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        await gateway.client.post("/v1/queues/orders/messages", content=pieces())
        text = (await gateway.client.get("/metrics")).text

        for stage in ("admit", "commit", "confirm"):
            assert f'forebay_gateway_stage_seconds_count{{stage="{stage}"}} 1.0' in text
