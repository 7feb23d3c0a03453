"""What `explain` and `doctor` say of queues that are sent on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.unit.cli.installation import Done, Installation


class Service(ThreadingHTTPServer):
    """Answers everything with 405, and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/take"


class _Handler(BaseHTTPRequestHandler):
    def do_OPTIONS(self) -> None:
        assert isinstance(self.server, Service)
        self.server.asked.append(self.command)
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_HEAD = do_GET = do_OPTIONS

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def finding(done: Done, check: str) -> dict[str, str]:
    (found,) = [f for f in done.json["findings"] if f["check"] == check]
    return dict(found)


def test_doctor_asks_a_service_without_sending_it_a_message(
    site: Installation, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__HTTP__URL", service.url)

    found = finding(site.run("doctor", "--json"), "sink orders")

    assert (found["verdict"], found["text"]) == ("ok", f"{service.url} answers")
    assert service.asked == ["OPTIONS"]


def test_doctor_fails_for_a_service_that_is_away(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__HTTP__URL", "http://u:sesame@127.0.0.1:1/")

    done = site.run("doctor", "--json")
    found = finding(done, "sink orders")

    assert found["verdict"] == "fail"
    assert "http://127.0.0.1:1 cannot be reached" in found["text"]
    assert "sesame" not in done.out


def test_doctor_looks_at_another_broker_and_makes_nothing(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__FORWARD__QUEUE", "there")
    here = finding(site.run("doctor", "--json"), "sink orders")
    other = site.folder / "other.db"
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__FORWARD__BROKER_URL", f"sqlite:///{other}")
    there = finding(site.run("doctor", "--json"), "sink orders")

    assert (here["verdict"], here["text"]) == ("ok", "queue 'there' on the same broker answers")
    assert there["verdict"] == "fail"
    assert not other.exists()


def test_doctor_says_what_is_missing(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__SINK", "http")

    assert "set queues.orders.http.url" in finding(site.run("doctor", "--json"), "sink orders")["text"]


def test_explain_names_the_target(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES__ORDERS__HTTP__URL", "https://u:sesame@shop.test/take")
    monkeypatch.setenv("FOREBAY_QUEUES__CLICKS__FORWARD__QUEUE", "orders")

    sent, forwarded = site.run("explain", "orders").out, site.run("explain", "clicks").out

    assert "are sent to https://u:***@shop.test/take by POST" in sent
    assert "are forwarded to the queue 'orders' on the same broker" in forwarded


def test_doctor_and_explain_know_the_targets_of_requests(
    site: Installation, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_FORWARD__BILLING__URL", service.url)
    monkeypatch.setenv("FOREBAY_FORWARD__BILLING__WAIT", "2s")
    monkeypatch.setenv("FOREBAY_FORWARD__BILLING__ORDER", "all")

    found = finding(site.run("doctor", "--json"), "forward billing")
    told = site.run("explain", "billing").out

    assert (found["verdict"], found["text"]) == ("ok", f"{service.url} answers")
    assert service.asked == ["OPTIONS"]
    assert (
        f"to /v1/forward/billing/… are kept here, and sent to {service.url} as they came, one by one" in told
    )
    assert "waits up to 2 s" in told
