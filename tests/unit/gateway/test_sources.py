"""Webhooks: genuine deliveries become messages, byte for byte; all others are refused alike."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import stripe
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from standardwebhooks import Webhook

from forebay.errors import SettingsError
from forebay.settings import load
from gateway.metrics import GatewayMetrics
from gateway.problems import SIGNATURE_INVALID
from gateway.sources.recipe import Delivery, Unverified
from gateway.sources.settings import SourceSettings
from gateway.sources.source import Source
from tests.unit.gateway.support import Running, ScriptedBroker, running

OLD = "whsec_" + base64.b64encode(b"an old secret of 24 byte").decode()
NEW = "whsec_" + base64.b64encode(b"the new secret, as good.").decode()
BODY = b'{"id": "evt_1",  "type":"order.created", "n": 1.0, "text": "\xc3\xa9\\u00e9"}'

Headers = dict[str, str]
Sign = Callable[..., Headers]


def standard(body: bytes, *, secret: str = NEW, at: float | None = None, id: str = "msg_1") -> Headers:
    when = datetime.fromtimestamp(at or time.time(), UTC)
    signature = Webhook(secret).sign(id, when, body.decode())
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(when.timestamp())),
        "webhook-signature": f"v1a,AAAA {signature}",
    }


def svix(body: bytes, **how: Any) -> Headers:
    return {name.replace("webhook", "svix"): value for name, value in standard(body, **how).items()}


def of_stripe(body: bytes, *, secret: str = NEW, at: float | None = None) -> Headers:
    header = stripe.WebhookSignature.generate_signature_header(
        body.decode(), secret, timestamp=int(at or time.time())
    )
    return {"stripe-signature": header}


def github(body: bytes, *, secret: str = NEW, at: float | None = None, event: str = "push") -> Headers:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "x-hub-signature-256": f"sha256={digest}",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-github-event": event,
    }


def own(body: bytes, *, secret: str = NEW, at: float | None = None) -> Headers:
    """A service of no name: "v0:<time>:<body>", base64 of SHA-512."""
    when = str(int(at or time.time()))
    signed = b":".join([b"v0", when.encode(), body])
    digest = hmac.new(secret.encode(), signed, hashlib.sha512).digest()
    return {
        "x-shop-signature": "v0=" + base64.b64encode(digest).decode(),
        "x-shop-time": when,
        "x-shop-event": "e-1",
    }


OWN = {
    "header": "X-Shop-Signature",
    "algorithm": "sha512",
    "encoding": "base64",
    "prefix": "v0=",
    "signed": "v0:{timestamp}:{body}",
    "timestamp_header": "X-Shop-Time",
    "id_header": "X-Shop-Event",
    "challenge_type": "url_verification",
}

SCHEMES: dict[str, Sign] = {
    "standard": standard,
    "svix": svix,
    "stripe": of_stripe,
    "github": github,
    "hmac": own,
}
TIMED = [name for name in SCHEMES if name != "github"]


def source(scheme: str, *secrets: str, **more: Any) -> SourceSettings:
    described = {"hmac": OWN} if scheme == "hmac" else {}
    return SourceSettings.model_validate(
        {
            "scheme": "standard" if scheme == "svix" else scheme,
            "queue": "orders",
            "secrets": secrets or (NEW,),
            **described,
            **more,
        }
    )


async def deliver(gateway: Running, headers: Headers, body: bytes = BODY) -> httpx2.Response:
    return await gateway.client.post(
        "/v1/sources/shop", content=body, headers={"content-type": "application/json", **headers}
    )


def counted(gateway: Running, outcome: str) -> float:
    labels = {"source": "shop", "outcome": outcome}
    return gateway.registry.get_sample_value("forebay_gateway_deliveries_total", labels) or 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_genuine_delivery_is_stored_as_the_bytes_that_were_signed(scheme: str) -> None:
    async with running(sources={"shop": source(scheme)}) as gateway:
        answer = await deliver(gateway, SCHEMES[scheme](BODY))

        [message] = gateway.broker.queues["orders"]
        assert answer.status_code == 202
        assert answer.json() == {
            "id": message.id, "queue": "orders", "durability": "synced", "duplicate": False,
        }  # fmt: skip
        assert message.body == BODY
        assert message.content_type == "application/json"
        assert message.headers["webhook-source"] == "shop"
        assert not [name for name in message.headers if "signature" in name]
        assert counted(gateway, "verified") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_an_event_that_is_delivered_again_is_one_message(scheme: str) -> None:
    """Signed anew, at another time: it is the event's id that counts."""
    async with running(sources={"shop": source(scheme)}) as gateway:
        first = await deliver(gateway, SCHEMES[scheme](BODY, at=time.time() - 60))
        again = await deliver(gateway, SCHEMES[scheme](BODY))

        assert (first.status_code, again.status_code) == (202, 202)
        assert again.json() == first.json() | {"duplicate": True}
        assert len(gateway.broker.messages) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_while_a_secret_is_replaced_both_are_good_and_no_other_is(scheme: str) -> None:
    sign = SCHEMES[scheme]
    other = "whsec_" + base64.b64encode(b"somebody else's secret!!").decode()
    async with running(sources={"shop": source(scheme, OLD, NEW)}) as gateway:
        answers = [await deliver(gateway, sign(BODY, secret=secret)) for secret in (OLD, NEW, other)]

        assert [a.status_code for a in answers] == [202, 202, 401]
        assert counted(gateway, "wrong") == 1


@pytest.mark.parametrize("scheme", TIMED)
@pytest.mark.parametrize("off", [-301, -300, 300, 301])
def test_five_minutes_are_tolerated_and_not_a_second_more(scheme: str, off: int) -> None:
    now = int(time.time())
    shop = Source("shop", source(scheme), metrics=GatewayMetrics(CollectorRegistry()), clock=lambda: now)
    delivery = Delivery(headers=SCHEMES[scheme](BODY, at=now + off), body=BODY)
    if abs(off) <= 300:
        assert shop.verify(delivery)
    else:
        with pytest.raises(Unverified) as refused:
            shop.verify(delivery)
        assert refused.value.check == "expired"


@pytest.mark.parametrize("scheme", TIMED)
@pytest.mark.parametrize("off", [-3600, 3600])
async def test_a_delivery_of_another_time_is_refused(scheme: str, off: float) -> None:
    async with running(sources={"shop": source(scheme)}) as gateway:
        answer = await deliver(gateway, SCHEMES[scheme](BODY, at=time.time() + off))

        assert answer.status_code == 401
        assert gateway.broker.messages == []
        assert counted(gateway, "expired") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_forgery_is_refused_in_the_same_words(scheme: str) -> None:
    """Nothing in the answer says how far the forgery has come; the figures do."""
    good = SCHEMES[scheme](BODY)
    signature = next(name for name in good if "signature" in name)
    async with running(sources={"shop": source(scheme)}) as gateway:
        answers = [
            await deliver(gateway, good, BODY.replace(b"1.0", b"1.1")),
            await deliver(gateway, {k: v for k, v in good.items() if k != signature}),
            await deliver(gateway, good | {signature: ""}),
            await deliver(gateway, good | {signature: good[signature][:-4] + "AAAA"}),
            await deliver(gateway, good | {signature: "v0=zz t=1,v1=zz sha256=zz v1,%%"}),
            await deliver(gateway, good | {signature: "v1," * 5000}),
            await deliver(gateway, {}),
        ]

        assert {a.status_code for a in answers} == {401}
        assert len({a.content for a in answers}) == 1
        assert answers[0].json()["type"] == SIGNATURE_INVALID.type
        assert answers[0].headers["www-authenticate"] == "Webhook-Signature"
        assert gateway.broker.messages == []
        assert counted(gateway, "verified") == 0
        assert sum(counted(gateway, c) for c in ("missing", "malformed", "wrong", "expired")) == len(answers)


@pytest.mark.parametrize("scheme", TIMED)
async def test_the_time_cannot_be_renewed_by_somebody_else(scheme: str) -> None:
    old = SCHEMES[scheme](BODY, at=time.time() - 3600)
    now = str(int(time.time()))
    stamped = {
        name: now
        if name.endswith(("-timestamp", "-time"))
        else value.replace(value[2:12], now)
        if name == "stripe-signature"
        else value
        for name, value in old.items()
    }
    async with running(sources={"shop": source(scheme)}) as gateway:
        answer = await deliver(gateway, stamped)

        assert stamped != old
        assert answer.status_code == 401
        assert counted(gateway, "wrong") == 1


async def test_headers_that_nobody_signed_decide_nothing() -> None:
    async with running(sources={"shop": source("stripe")}) as gateway:
        answer = await deliver(
            gateway,
            of_stripe(BODY)
            | {
                "Idempotency-Key": "chosen", "Forebay-Delay": "1h", "Forebay-TTL": "1",
                "Forebay-Nonsense": "1", "Forebay-Ordering-Key": "k", "Prefer": "durability=replicated",
                "ce-type": "x", "Forebay-Meta-A": "b",
            },
        )  # fmt: skip

        [message] = gateway.broker.messages
        assert answer.status_code == 202
        assert (message.not_before, message.expires_at, message.key) == (None, None, None)
        assert message.headers == {"webhook-source": "shop"}


async def test_what_the_event_is_stays_with_the_message() -> None:
    async with running(sources={"shop": source("github", keep_headers=("X-Trace",))}) as gateway:
        await deliver(gateway, github(BODY) | {"x-trace": "t-1", "x-other": "no"})

        assert gateway.broker.messages[0].headers == {
            "x-github-event": "push",
            "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            "x-trace": "t-1",
            "webhook-source": "shop",
        }


async def test_the_same_event_id_at_two_sources_is_two_messages() -> None:
    async with running(sources={"shop": source("standard"), "till": source("standard")}) as gateway:
        await deliver(gateway, standard(BODY))
        other = await gateway.client.post("/v1/sources/till", content=BODY, headers=standard(BODY))
        producer = await gateway.post(BODY, headers={"Idempotency-Key": "msg_1"})

        assert other.json()["duplicate"] is False
        assert producer.json()["duplicate"] is False
        assert len({m.id for m in gateway.broker.messages}) == 3


async def test_an_event_whose_bytes_changed_is_accepted_under_its_id() -> None:
    """A 4xx would make the service try for days; the database sets the second one aside."""
    changed = BODY.replace(b"1.0", b"2.0")
    async with running(sources={"shop": source("stripe")}) as gateway:
        first = await deliver(gateway, of_stripe(BODY))
        second = await deliver(gateway, of_stripe(changed), changed)

        assert second.status_code == 202
        assert second.json()["id"] == first.json()["id"]
        assert [m.body for m in gateway.broker.messages] == [BODY, changed]


async def test_a_verified_body_without_an_id_is_taken_as_it_is() -> None:
    async with running(sources={"shop": source("stripe")}) as gateway:
        for body in (b"not json", b"[1]", b'{"id": null}', b'{"id": ["a"]}', b""):
            answer = await deliver(gateway, of_stripe(body), body)
            assert answer.status_code == 202

        assert len({m.id for m in gateway.broker.messages}) == 5


async def test_a_ping_is_answered_and_is_no_message() -> None:
    async with running(sources={"shop": source("github")}) as gateway:
        answer = await deliver(gateway, github(BODY, event="ping"))
        forged = await deliver(gateway, github(BODY, event="ping"), b"other")

        assert (answer.status_code, forged.status_code) == (200, 401)
        assert answer.json() == {"source": "shop", "queue": "orders", "verified": True, "stored": False}
        assert gateway.broker.messages == []
        assert counted(gateway, "ping") == 1


async def test_a_challenge_is_answered_to_those_who_sign_it() -> None:
    body = json.dumps({"type": "url_verification", "challenge": "3eZbrw1aB"}).encode()
    async with running(sources={"shop": source("hmac")}) as gateway:
        answer = await deliver(gateway, own(body), body)
        forged = await deliver(gateway, own(b"{}"), body)

        assert (answer.status_code, answer.text) == (200, "3eZbrw1aB")
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert forged.status_code == 401
        assert gateway.broker.messages == []


async def test_an_unknown_source_is_404_and_another_method_405() -> None:
    async with running(sources={"shop": source("github")}) as gateway:
        unknown = await gateway.client.post("/v1/sources/nobody", content=BODY, headers=github(BODY))
        escaped = await gateway.raw(
            b"POST /v1/sources/sho%70 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        read = await gateway.client.get("/v1/sources/shop")

        assert (unknown.status_code, escaped.status, read.status_code) == (404, 404, 405)
        assert read.headers["allow"] == "POST"


async def test_where_api_keys_are_needed_a_signature_is_enough(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    async with running(sources={"shop": source("github")}, keys_file=tmp_path / "keys.json") as gateway:
        delivered = await deliver(gateway, github(BODY))
        elsewhere = [
            await gateway.post(BODY, headers=github(BODY)),
            await gateway.client.get("/v1/sources/../queues/orders", headers=github(BODY)),
        ]

        assert delivered.status_code == 202
        assert {answer.status_code for answer in elsewhere} <= {400, 401}


async def test_compressed_and_oversized_deliveries_are_refused_before_their_check() -> None:
    async with running(sources={"shop": source("github")}, max_body_bytes=1000) as gateway:
        large = await deliver(gateway, github(b"x" * 1001), b"x" * 1001)
        compressed = await deliver(gateway, github(BODY) | {"Content-Encoding": "gzip"})

        assert (large.status_code, compressed.status_code) == (413, 415)
        assert gateway.broker.messages == []
        parts = gateway.app.parts
        assert parts is not None
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


async def test_a_source_whose_queue_is_not_declared_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"sources\.shop\.queue is 'oders', which is not declared"):
        async with running(ScriptedBroker(), sources={"shop": source("github", queue="oders")}):
            pass


# ---- vectors that others published


def test_githubs_own_example_fits() -> None:
    """From https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries."""
    recipe = _recipe("github")
    delivery = Delivery(
        headers={
            "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        },
        body=b"Hello, World!",
    )

    recipe.verify(delivery, [b"It's a Secret to Everybody"], now=0, tolerance=1)
    with pytest.raises(Unverified):
        recipe.verify(delivery, [b"It's a Secret to Everybody!"], now=0, tolerance=1)


def test_the_example_of_standard_webhooks_fits() -> None:
    """From the specification, https://github.com/standard-webhooks/standard-webhooks."""
    recipe = _recipe("standard")
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    delivery = Delivery(
        headers={
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        body=b'{"test": 2432232314}',
    )

    recipe.verify(delivery, [secret], now=1614265330, tolerance=1)
    with pytest.raises(Unverified):
        recipe.verify(delivery, [secret[:-1]], now=1614265330, tolerance=1)


def _recipe(scheme: str) -> Any:
    from gateway.sources.recipe import NAMED

    return NAMED[scheme][0]


# ---- settings


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"secrets": ()}, "at least 1"),
        ({"secrets": ("short",)}, "at least 16"),
        ({"scheme": "standard", "secrets": ("whsec_%%%%%%%%%%%%%%%%%%%%",)}, "whsec_"),
        ({"scheme": "hmac"}, "needs its description"),
        ({"hmac": {"header": "X-Sig"}}, "but the scheme is 'github'"),
        ({"keep_headers": ("X-Hub-Signature-256",)}, "never kept"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "algorithm": "sha1"}}, "sha256"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "signed": "{timestamp}"}}, "any body would fit"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "signed": "{body}{when}"}}, "no piece {when}"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "signed": "{body"}}, "expected '}'"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "timestamp_header": "X-T"}}, "but not signed"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "signed": "{timestamp}{body}"}}, "timestamp_header"),
        ({"scheme": "hmac", "hmac": {"header": "X-Sig", "signed": "{id}{body}"}}, "set id_header"),
        ({"scheme": "hmac", "hmac": {"header": "no good"}}, "no name of a header"),
    ],
)  # fmt: skip
def test_a_source_that_would_let_anybody_in_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceSettings.model_validate(
            {"scheme": "github", "queue": "orders", "secrets": ("0123456789abcdef",), **given}
        )

    assert why in str(refused.value)


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_are_settings(number: int, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[number]
    secret = "whsec_" + "0" * 24
    (tmp_path / "forebay.toml").write_text(example.replace("whsec_…", secret))

    settings = load(tmp_path / "forebay.toml", environ={}, cwd=tmp_path).settings

    [source] = settings.sources.values()
    assert source.secrets
