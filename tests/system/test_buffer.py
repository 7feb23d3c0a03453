"""deploy/nginx/examples/buffer.conf: an application stays live, and what it cannot take is kept for it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.needs import missing_server
from tests.servers.nginx import SOURCE, Nginx, NginxNotInstalled, find_nginx
from tests.servers.postgres import free_port
from tests.servers.service import Service
from tests.system.harness import Answer, Site, http, until


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    try:
        find_nginx()
    except NginxNotInstalled as missing:
        missing_server(str(missing))


def test_what_an_application_cannot_take_is_made_of_it_later_and_nothing_twice(bare_site: Site) -> None:
    """It is there, goes away, comes back, and dies in the middle of a request."""
    with Service() as service:
        bare_site.settings |= {"FORWARD__BILLING__URL": service.url}
        bare_site.dev()
        port = free_port()
        example = (SOURCE / "examples/buffer.conf").read_text()
        example = example.replace("127.0.0.1:9000", service.url.removeprefix("http://"))
        example = example.replace("listen 8090", f"listen 127.0.0.1:{port}")
        with Nginx([bare_site.port], files={"servers/billing.conf": example}):

            def call(number: int, method: str = "POST") -> Answer:
                url = f"http://127.0.0.1:{port}/items/a%20b?n={number}"
                body = None if method == "GET" else b"%d" % number
                return http(method, url, body, {"Idempotency-Key": f"own-{number}"})

            assert (call(1).status, call(1).body) == (201, b"made of 1")

            service.stop()
            kept = [call(number) for number in (2, 3)]
            assert [answer.status for answer in kept] == [202, 202]
            assert kept[0].json["queue"] == "billing"
            assert call(4, "GET").status == 503

            service.start()
            assert (call(5).status, call(5).body) == (201, b"made of 5")
            until(lambda: len(service.effects) == 4, within=60, what="the requests that were kept")

            service.dying = True
            assert call(6).status == 502
            service.dying = False

    assert Counter(service.effects.values()) == {b"1": 1, b"2": 1, b"3": 1, b"5": 1, b"6": 1}
    assert service.paths == {("POST", f"/items/a%20b?n={number}") for number in (1, 2, 3, 5, 6)}
