"""Gateways killed behind nginx, and clients that send each message once, without a key."""

from __future__ import annotations

import pytest

from tests.needs import missing_server
from tests.servers.nginx import SOURCE, NginxNotInstalled, find_nginx
from tests.system import proxied_run
from tests.system.harness import Site, http, until
from tests.system.proxied_run import QUEUE, Proxied


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    try:
        find_nginx()
    except NginxNotInstalled as missing:
        missing_server(str(missing))


def test_killed_gateways_cost_no_client_a_failure(site: Site) -> None:
    """A cut of `make soak ONLY=proxied`: 0 failed, 0 lost, 0 doubled."""
    proxied_run.run(site, rate=250.0, kills=2).check()


def test_a_gateway_killed_between_publishing_and_answering_has_one_effect(site: Site) -> None:
    """The other gateway gets the request again under the key that nginx made, and so under the same id."""
    assert _rows_after_a_death_before_the_answer(site, files={}) == 1


def test_without_the_key_that_nginx_makes_there_would_be_two(site: Site) -> None:
    """What shows that the test above can fail."""
    once = (SOURCE / "forebay/once.conf").read_text()
    keyless = once.replace("proxy_set_header Idempotency-Key $forebay_key;\n", "")
    assert keyless != once

    assert _rows_after_a_death_before_the_answer(site, files={"forebay/once.conf": keyless}) == 2


def _rows_after_a_death_before_the_answer(site: Site, *, files: dict[str, str]) -> int:
    order = site.folder / "die"
    this = Proxied(site, how=f"die_before_answer={order}", files=files)
    try:
        order.touch()
        answer = http("POST", f"{this.nginx.url}/v1/queues/{QUEUE}/messages", b"{}")
        assert answer.status == 202, answer
        assert sum(gateway.running for gateway in this.gateways) == 1

        def done() -> bool:
            depth = http("GET", f"{this.nginx.url}/v1/queues/{QUEUE}").json
            return site.stored() > 0 and depth["waiting"] + depth["in_hand"] == 0

        until(done, what="an empty queue")
        return site.stored()
    finally:
        this.close()
