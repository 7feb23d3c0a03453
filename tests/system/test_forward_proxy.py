"""The sink `http` through a real forward proxy: up, down, in front of a service that is down, slow."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from forebay.errors import SinkUnavailable
from forebay.testing.sink_contract import delivery
from tests.needs import missing_server
from tests.servers.apache import PROXIED_FROM, ApacheNotInstalled, forward_proxy
from tests.servers.certificates import Certificates
from tests.servers.receiver import Receiver
from tests.servers.service import Service
from tests.system.flights_run import MAX_ATTEMPTS_ONE
from tests.system.harness import Site, http
from tests.unit.consumers.http import only, sink_to


def test_a_forward_proxy_is_the_only_one_that_the_service_sees_and_its_outage_costs_no_attempt(
    site: Site,
) -> None:
    try:
        proxy = forward_proxy()
    except ApacheNotInstalled as missing:
        missing_server(str(missing))
    with Service() as service, proxy:
        site.settings |= MAX_ATTEMPTS_ONE | {
            f"QUEUES__{site.queues}__SINK": "http",
            f"QUEUES__{site.queues}__HTTP__URL": f"{service.url}/take",
            f"QUEUES__{site.queues}__HTTP__PROXY": proxy.url,
            f"QUEUES__{site.queues}__BREAKER__MAX_RECOVERY_TIME": "0.5s",
        }
        site.gateway()
        consumer = site.consumer()
        sent = 0

        def send() -> None:
            nonlocal sent
            for _ in range(5):
                sent += 1
                assert site.post(site.queues, b"%d" % sent).status == 202

        def arrived() -> bool:
            # And the consumer has heard so: else it would rightly ask again.
            depth = http("GET", f"{site.url}/v1/queues/{site.queues}").json
            return len(service.effects) == sent and depth["waiting"] + depth["in_hand"] == 0

        def paused(because: str) -> None:
            consumer.until(lambda: because in consumer.output, what=f"“{because}”")

        send()
        consumer.until(arrived, what="effects through the proxy")

        proxy.kill()
        send()
        paused("http.proxy cannot be reached")
        proxy.start()
        consumer.until(arrived, what="effects when the proxy is back")

        service.stop()
        send()
        paused("answers 503 Service Unavailable")
        service.start()
        consumer.until(arrived, what="effects when the service is back")

        service.delay = 1.0
        send()
        consumer.until(arrived, what="effects when the service is slow")

    assert service.callers == {PROXIED_FROM}
    assert set(service.asked.values()) == {1}
    assert site.sql("select count(*) from dead_letters") == [(0,)]


async def test_https_goes_through_it_by_connect_and_its_refusals_are_told_apart(tmp_path: Path) -> None:
    """The service is seen through the tunnel; one that cannot be reached is an outage, and so is no proxy."""
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    tls = {"ca_file": str(certificates.ca), "server_name": "broker.test"}
    try:
        proxy = forward_proxy()
    except ApacheNotInstalled as missing:
        missing_server(str(missing))
    with proxy:
        async with (
            Receiver(tls=context) as service,
            sink_to(service.url, proxy=proxy.url, tls=tls) as sink,
        ):
            assert only(await sink.write([delivery()])) is None
            assert {request.remote for request, _ in service.requests} == {PROXIED_FROM}
            async with service.away():
                with pytest.raises(SinkUnavailable, match=r"http\.proxy answers 503"):
                    await sink.write([delivery()])
            proxy.kill()
            with pytest.raises(SinkUnavailable, match=r"http\.proxy cannot be reached"):
                await sink.write([delivery()])
