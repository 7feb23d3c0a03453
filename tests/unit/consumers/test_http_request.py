"""The headers of a request: what receivers rely on, and what no message can do to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from consumers.sinks.http.request import Headers
from consumers.sinks.settings import HttpSettings
from tests.unit.consumers.build import delivery

OLD, NEW = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def headers(
    settings: Mapping[str, object] | None = None, body: bytes = b"{}", **fields: Any
) -> CIMultiDict[str]:
    made = Headers(HttpSettings.model_validate(settings or {}))
    return made.of(
        delivery("id-1", body=body, attempt=3, **fields), timestamp=int(datetime.now(UTC).timestamp())
    )


def test_the_id_the_attempt_and_the_key_are_told() -> None:
    found = headers(key="customer 7", content_type="text/csv; charset=utf-8")

    assert found["Idempotency-Key"] == "id-1"
    assert found["Forebay-Attempt"] == "3"
    assert found["Forebay-Queue"] == "orders"
    assert found["Forebay-Ordering-Key"] == "customer 7"
    assert found["Content-Type"] == "text/csv; charset=utf-8"
    assert found["User-Agent"].startswith("forebay/")


def test_the_header_of_the_id_can_have_another_name() -> None:
    found = headers({"idempotency_header": "X-Request-Id"})

    assert found["X-Request-Id"] == "id-1"
    assert "Idempotency-Key" not in found


def test_the_messages_own_headers_are_passed_on_behind_a_prefix() -> None:
    found = headers(headers={"source": "shop", "traceparent": "00-1"})

    assert (found["Forebay-Meta-source"], found["Forebay-Meta-traceparent"]) == ("shop", "00-1")


def test_only_the_wanted_ones_are_passed_on() -> None:
    settings = {"forward_headers": ["ce-*", "traceparent"], "header_prefix": ""}
    found = headers(settings, headers={"ce-type": "a", "traceparent": "b", "source": "c"})

    assert (found["ce-type"], found["traceparent"]) == ("a", "b")
    assert "source" not in found


@pytest.mark.parametrize(
    "name",
    ["host", "connection", "transfer-encoding", "content-length", "te", "trailer", "upgrade", "keep-alive",
     "proxy-authorization", "authorization", "cookie", "x-forwarded-for", "idempotency-key", "x-key",
     "forebay-attempt", "webhook-signature", "content-type"],
)  # fmt: skip
def test_without_a_prefix_a_message_sets_no_header_that_means_something_else(name: str) -> None:
    settings = {"header_prefix": "", "headers": ["X-Key: ours"], "signing_secrets": [OLD]}

    assert "theirs" not in headers(settings, headers={name: "theirs"}).getall(name, [])


@given(
    name=st.text(max_size=20), text=st.text(max_size=50), key=st.text(max_size=50), kind=st.text(max_size=50),
    prefix=st.sampled_from(["", "Forebay-Meta-"]),
)  # fmt: skip
def test_nothing_in_a_message_ends_a_header_or_begins_another(
    name: str, text: str, key: str, kind: str, prefix: str
) -> None:
    found = headers(
        {"header_prefix": prefix}, headers={name: text, "\r\nx: y": "\r\n\r\nz"}, key=key, content_type=kind
    )

    for header, value in found.items():
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", header)
        assert re.search(r"[\x00-\x1f\x7f]", value) is None
        value.encode()


def test_what_a_header_cannot_carry_says_how_it_is_written() -> None:
    found = headers(headers={"note": "a\r\nb", "name": "Žofie"})

    assert found["Forebay-Meta-note"] == "UTF-8''a%0D%0Ab"
    assert found["Forebay-Meta-name"] == "Žofie"


def test_a_request_is_signed_as_standard_webhooks_says() -> None:
    body = '{"ключ": 1}'.encode()
    found = headers({"signing_secrets": [OLD]}, body=body)

    assert found["webhook-id"] == "id-1"
    assert Webhook(OLD).verify(body, dict(found)) == {"ключ": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(body + b" ", dict(found))


def test_while_the_secret_changes_both_receivers_accept_the_signature() -> None:
    found = headers({"signing_secrets": [NEW, OLD]})

    assert Webhook(OLD).verify(b"{}", dict(found)) == Webhook(NEW).verify(b"{}", dict(found)) == {}


def test_a_body_that_is_no_text_is_signed_too() -> None:
    assert headers({"signing_secrets": [OLD]}, body=b"\xff\x00")["webhook-signature"].startswith("v1,")


def test_another_host_gets_the_message_and_none_of_our_credentials() -> None:
    made = Headers(HttpSettings.model_validate({"headers": ["Authorization: Bearer secret"]}))
    found = made.of(delivery("id-1"), timestamp=0, ours=False)

    assert "Authorization" not in found
    assert found["Idempotency-Key"] == "id-1"


@pytest.mark.parametrize(
    "settings",
    [
        {"headers": ["no colon, but a secret"]},
        {"headers": ["X-Key: a\x00secret"]},
        {"headers": ["Bad Name: secret"]},
        {"headers": ["Content-Length: 3 secret"]},
        {"signing_secrets": ["whsec_§secret"]},
        {"url": "ftp://user:secret@host/"},
        {"url": "https://"},
        {"url": "https://user:secret@host/", "headers": ["Authorization: Bearer secret"]},
        {"header_prefix": "a b"},
        {"idempotency_header": "Host"},
        {"message_statuses": [302]},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HttpSettings.model_validate(settings)


def test_lists_given_as_one_text_are_taken_apart() -> None:
    found = HttpSettings.model_validate(
        {"headers": ("A: 1, 2\nB: 3\n",), "signing_secrets": (f"{NEW},{OLD}",)}
    )

    assert [h.get_secret_value() for h in found.headers] == ["A: 1, 2", "B: 3"]
    assert len(found.signing_secrets) == 2
