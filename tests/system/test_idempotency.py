"""The same idempotency key: one effect for one body, and never a silent loss for two."""

from __future__ import annotations

import hashlib
import json

from tests.servers.postgres import free_port
from tests.system.harness import Site


def test_one_key_with_two_bodies_through_two_gateways(site: Site) -> None:
    """One is stored, the other is a dead letter `idempotency-conflict`; `verify` sees both."""
    site.queues = "orders"
    other = free_port()
    site.gateway()
    site.gateway(port=other)
    bodies = (b'{"order": 1}', b'{"order": 2}')

    first = site.post("orders", bodies[0], Idempotency_Key="same")
    second = site.post("orders", bodies[1], port=other, Idempotency_Key="same")

    # Neither gateway can know of the other's: both accept, under one id.
    assert (first.status, second.status) == (202, 202)
    assert first.json["id"] == second.json["id"]
    consumer = site.consumer("orders")
    consumer.until(
        lambda: site.stored() == 1 and site.sql("select count(*) from dead_letters")[0][0] == 1,
        what="one row and one dead letter",
    )
    ((stored,),) = site.sql("select body from messages")
    ((id, original_id, dead, error_class),) = site.sql(
        "select id::text, original_id::text, body, error_class from dead_letters"
    )
    assert {bytes(stored), bytes(dead)} == set(bodies)
    assert error_class == "idempotency-conflict"
    assert original_id == first.json["id"] != id
    record = "".join(f"{first.json['id']} {hashlib.sha256(body).hexdigest()} orders\n" for body in bodies)
    (site.folder / "sent.txt").write_text(record)
    verified = site.run("verify", "sent.txt", "--wait", "30s", "--json")
    account = json.loads(verified.stdout)
    assert (account["lost"], account["altered"], account["duplicated"]) == (0, 0, 0), account
    assert account["dead"] == 1, account


def test_a_retry_with_the_same_key_and_body_through_another_gateway_is_one_row(site: Site) -> None:
    site.queues = "orders"
    other = free_port()
    site.gateway()
    site.gateway(port=other)
    for port in (site.port, other, site.port):
        assert site.post("orders", b"same", port=port, Idempotency_Key="same").status == 202
    assert site.post("orders", b"last", Idempotency_Key="last").status == 202

    consumer = site.consumer("orders")

    consumer.until(lambda: site.sql("select 1 from messages where body = 'last'"), what="the last message")
    assert consumer.stop() == 0
    assert site.stored() == 2
    assert site.sql("select count(*) from dead_letters")[0][0] == 0
