"""A calls B through Forebay while B is down, slow, failing and back: a cut of `make soak ONLY=forward`."""

from __future__ import annotations

from tests.servers.service import Service
from tests.system import forward_run
from tests.system.forward_run import Phases
from tests.system.harness import Site, http

CUT = Phases(well=2.0, down=4.0, slow=3.0, failing=3.0)


def test_b_has_every_request_once_and_in_order(site: Site) -> None:
    with Service() as service:
        url = f"sqlite:///{site.queue_file}"
        outcome = forward_run.run(site, service, url, rate=15, phases=CUT, order="all", within=120)
    print(outcome)
    forward_run.check(outcome)
    assert {path for path in service.paths if "last" not in path[1]} == {
        ("POST", f"/api/items/{n}?by=a") for n in range(outcome.sent)
    }


def test_in_forebay_dev_a_gets_bs_own_answer(bare_site: Site) -> None:
    with Service() as service:
        bare_site.settings |= {"FORWARD__BILLING__URL": service.url, "FORWARD__BILLING__WAIT": "20s"}
        bare_site.dev()
        answer = http("POST", f"{bare_site.url}/v1/forward/billing/items", b"one")
        kept = http("GET", f"{bare_site.url}/v1/messages/{answer.headers['forebay-message-id']}")

    assert (answer.status, answer.body) == (201, b"made of one")
    assert (kept.json["state"], kept.json["queue"], kept.json["answer"]["status"]) == ("done", "billing", 201)


def test_through_each_broker_a_request_comes_as_it_was_sent(site: Site, broker: str) -> None:
    with Service() as service:
        site.settings |= {
            "FORWARD__BILLING__URL": f"{service.url}/api",
            "FORWARD__BILLING__QUEUE": site.queues,
            "FORWARD__BILLING__WAIT": "30s",
        }
        site.queues = ""
        site.gateway()
        site.consumer()
        url = f"{site.url}/v1/forward/billing/a%20b;v=1?q=%2F..%2F"
        answer = http("PATCH", url, "ä\0".encode(), {"Content-Type": "text/plain"}, timeout=40)

    assert (answer.status, answer.body.decode()) == (201, "made of ä\0"), broker
    assert service.paths == {("PATCH", "/api/a%20b;v=1?q=%2F..%2F")}
