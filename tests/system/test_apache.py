"""deploy/apache with a real httpd: what it passes on, and what it answers by itself."""

from __future__ import annotations

import json
from typing import Literal

import aiohttp
import pytest
from yarl import URL

from tests.needs import missing_server
from tests.servers.apache import ApacheNotInstalled, find_apache, in_front_of
from tests.servers.postgres import free_port
from tests.system.test_nginx import SEND, Dying, Fake

EVENT = {"ce-specversion": "1.0", "ce-id": "9", "ce-source": "/shop", "ce-type": "order"}


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    try:
        find_apache()
    except ApacheNotInstalled as missing:
        missing_server(str(missing))


@pytest.mark.parametrize("mpm", ["event", "prefork"])
async def test_requests_are_passed_on_with_a_key_and_without_what_is_not_the_clients_to_say(
    mpm: Literal["event", "prefork"],
) -> None:
    async with Fake() as gateway:
        with in_front_of([gateway.port], mpm) as apache:
            async with aiohttp.ClientSession(apache.url) as client:
                for headers in ({}, {}, {"Idempotency-Key": "order-1"}, EVENT):
                    said = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=x", **headers}
                    async with client.post(SEND, data=b"{}", headers=said) as answer:
                        assert answer.status == 202, apache.log
                path = "/v1/forward/billing/a%2Fb?x=%41"
                async with client.put(URL(apache.url + path, encoded=True), data=b"1") as answer:
                    assert answer.status == 202
                hidden = ("/metrics", "/admin/v1/queues", "/v1/../metrics", "/v1/%2e%2e/metrics", "//metrics")
                for path, status in (("/readyz", 202), *((path, 404) for path in hidden)):
                    async with client.get(URL(apache.url + path, encoded=True)) as answer:
                        assert answer.status == status, path
                async with client.post(SEND, data=b"0" * 900_001) as answer:
                    document = json.loads(await answer.read())
                    assert (answer.status, document["type"]) == (413, "/problems/body-too-large")
                    assert answer.content_type == "application/problem+json"
                async with client.post("/v1/queues/orders/batch", data=b"0" * 900_001) as answer:
                    assert answer.status == 202

    first, second, own, named, forwarded, read, *_ = gateway.keys
    assert first
    assert second not in (None, first)
    assert (own, named, read) == ("order-1", None, None)
    assert forwarded
    heads = [request for request, _ in gateway.requests]
    assert heads[0].headers["X-Forwarded-For"] == "127.0.0.1"
    assert "Forwarded" not in heads[0].headers
    assert heads[4].raw_path == "/v1/forward/billing/a%2Fb?x=%41"


async def test_a_gateway_that_is_gone_is_not_noticed() -> None:
    async with Fake() as gateway:
        with in_front_of([free_port(), gateway.port]) as apache:
            async with aiohttp.ClientSession(apache.url) as client:
                for _ in range(10):
                    async with client.post(SEND, data=b"{}") as answer:
                        assert answer.status == 202, apache.log
    assert len(gateway.requests) == 10


async def test_without_a_gateway_it_says_so_and_one_that_dies_in_the_middle_is_a_502() -> None:
    """What nginx does better: it would ask the other one."""
    async with Dying() as dying:
        with in_front_of([dying.port]) as apache:
            async with aiohttp.ClientSession(apache.url) as client:
                async with client.post(SEND, data=b"{}") as answer:
                    document = json.loads(await answer.read())
                    assert (answer.status, document["type"]) == (502, "/problems/outcome-unknown")
                await dying.stop()
                async with client.post(SEND, data=b"{}") as answer:
                    document = json.loads(await answer.read())
                    assert (answer.status, document["type"]) == (503, "/problems/not-ready")
                    assert answer.headers["Retry-After"] == "2"
