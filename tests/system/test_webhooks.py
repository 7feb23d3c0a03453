"""Webhooks from the wire to the database: what was signed is what is stored, and nothing else is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime

import stripe
from standardwebhooks import Webhook

from tests.system.harness import Answer, Site, http

OLD, NEW, WRONG = (f"whsec_{base64.b64encode(name * 8).decode()}" for name in (b"old", b"new", b"bad"))

# Spaces, escapes, a number that no parser would write again the same way: only exact bytes fit.
EVENT = '{"id": "%s",  "amount": 10.50, "text": "\\u00e9é \\/", "when": 1e3}\n'


def of_stripe(body: bytes, secret: str, *, age: int = 0) -> dict[str, str]:
    header = stripe.WebhookSignature.generate_signature_header(
        body.decode(), secret, timestamp=int(time.time()) - age
    )
    return {"Stripe-Signature": header}


def standard(body: bytes, secret: str, *, age: int = 0) -> dict[str, str]:
    when = datetime.fromtimestamp(int(time.time()) - age, UTC)
    event = json.loads(body)["id"]
    return {
        "Webhook-Id": event,
        "Webhook-Timestamp": str(int(when.timestamp())),
        "Webhook-Signature": Webhook(secret).sign(event, when, body.decode()),
    }


def github(body: bytes, secret: str, *, age: int = 0) -> dict[str, str]:
    return {
        "X-Hub-Signature-256": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}",
        "X-GitHub-Delivery": json.loads(body)["id"],
        "X-GitHub-Event": "push",
    }


SCHEMES = {"pay": of_stripe, "crm": standard, "git": github}


def test_deliveries_of_three_providers_are_byte_exact_in_the_database(site: Site) -> None:
    """Valid and rotated ones are stored once; wrong and expired ones are 401 and leave no trace."""
    secrets = site.folder / "pay-secrets"
    secrets.write_text(f"{OLD}\n{NEW}\n")
    site.queues = "events"
    site.settings |= {"SOURCES__PAY__SECRETS_FILE": str(secrets)}
    for name, scheme in {"pay": "stripe", "crm": "standard", "git": "github"}.items():
        prefix = f"SOURCES__{name.upper()}"
        site.settings |= {f"{prefix}__SCHEME": scheme, f"{prefix}__QUEUE": "events"}
    site.settings |= {f"SOURCES__{name}__SECRETS": f"{OLD},{NEW}" for name in ("CRM", "GIT")}
    site.gateway()

    def deliver(name: str, body: bytes, secret: str, *, age: int = 0) -> Answer:
        headers = {"Content-Type": "application/json", **SCHEMES[name](body, secret, age=age)}
        return http("POST", f"{site.url}/v1/sources/{name}", body, headers)

    sent: dict[str, bytes] = {}
    for name in SCHEMES:
        for number, secret in enumerate((OLD, NEW)):
            body = (EVENT % f"{name}-{number}").encode()
            accepted = deliver(name, body, secret)
            again = deliver(name, body, NEW)
            assert (accepted.status, again.status) == (202, 202), (name, accepted, again)
            assert again.json == accepted.json | {"duplicate": True}
            sent[accepted.json["id"]] = body
        forged = (EVENT % f"{name}-forged").encode()
        assert deliver(name, forged, WRONG).status == 401
        if name != "git":  # whose signature carries no time
            assert deliver(name, forged, NEW, age=301).status == 401

    consumer = site.consumer("events")
    consumer.until(lambda: site.stored() == len(sent), what=f"{len(sent)} rows")

    assert consumer.stop() == 0
    assert {str(id): bytes(body) for id, body in site.sql("select id, body from messages")} == sent
    kept = dict(site.sql("select headers->>'webhook-source', count(*) from messages group by 1"))
    assert kept == {"pay": 2, "crm": 2, "git": 2}
    assert site.sql("select count(*) from dead_letters") == [(0,)]
    gateway = site.processes[0]
    assert OLD not in gateway.output
    assert '"check": "wrong"' in gateway.output
    assert '"check": "expired"' in gateway.output


def test_a_source_without_a_secret_does_not_start(bare_site: Site) -> None:
    bare_site.settings |= {"SOURCES__PAY__SCHEME": "stripe", "SOURCES__PAY__QUEUE": "flights"}

    done = bare_site.run("gateway", "--port", str(bare_site.port))

    assert done.returncode == 2
    assert "sources.pay.secrets is missing" in done.stderr


def test_secrets_are_shown_by_no_command(bare_site: Site) -> None:
    bare_site.settings |= {
        "SOURCES__PAY__SCHEME": "stripe", "SOURCES__PAY__QUEUE": "flights", "SOURCES__PAY__SECRETS": NEW,
    }  # fmt: skip

    shown = bare_site.run("config", "show")
    doctor = bare_site.run("doctor")

    assert "sources.pay.secrets" in shown.stdout
    assert "POST /v1/sources/pay goes to queue 'flights'" in doctor.stdout
    assert NEW not in shown.stdout + shown.stderr + doctor.stdout + doctor.stderr
