"""What an answer means, without any network."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from consumers.sinks.http.verdicts import LONGEST_DELAY, Meaning, error_of, meaning_of, retry_after
from consumers.sinks.settings import HttpSettings
from forebay.errors import MessageRejected, RetryLater, SinkMisconfigured, SinkUnavailable

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DEFAULTS = HttpSettings()


def error(
    status: int, settings: HttpSettings = DEFAULTS, detail: str = "", **headers: str
) -> Exception | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of(status, named, settings, target="https://shop.test", detail=detail, now=NOW)


@pytest.mark.parametrize(
    ("meaning", "statuses"),
    [
        ("done", [200, 201, 202, 204, 299]),
        ("message", [400, 406, 410, 411, 412, 413, 414, 415, 418, 422, 428, 431, 451]),
        ("retry", [408, 409, 423, 425, 500, 506, 508, 520, 599]),
        ("destination", [429, 502, 503, 504, 507, 521, 522, 523]),
        ("configuration", [301, 302, 304, 308, 401, 402, 403, 404, 405, 407, 421, 426, 501, 505, 511]),
    ],
)
def test_every_status_has_one_meaning(meaning: Meaning, statuses: list[int]) -> None:
    assert {status: meaning_of(status, DEFAULTS) for status in statuses} == dict.fromkeys(statuses, meaning)


@pytest.mark.parametrize(
    ("setting", "meaning"),
    [
        ("message_statuses", "message"),
        ("retry_statuses", "retry"),
        ("destination_statuses", "destination"),
        ("configuration_statuses", "configuration"),
    ],
)
@pytest.mark.parametrize("status", [400, 404, 409, 500, 503])
def test_the_settings_have_the_last_word(setting: str, meaning: str, status: int) -> None:
    assert meaning_of(status, HttpSettings.model_validate({setting: [status]})) == meaning


def test_a_status_with_two_meanings_is_refused() -> None:
    with pytest.raises(ValidationError, match="status 409 is given two meanings"):
        HttpSettings(message_statuses=(409,), retry_statuses=(409,))


def test_a_refused_message_says_the_status_and_keeps_what_the_service_wrote_apart() -> None:
    found = error(422, detail="card 4111 is no customer")

    assert isinstance(found, MessageRejected)
    assert (str(found), found.error_class) == ("422 Unprocessable Entity", "http-422")
    assert found.detail == "card 4111 is no customer"


def test_an_outage_names_the_service_and_how_long_it_asks_to_be_left_alone() -> None:
    found = error(503, Retry_After="120")

    assert isinstance(found, SinkUnavailable)
    assert str(found) == "https://shop.test answers 503 Service Unavailable"
    assert found.retry_after == 120.0


def test_a_configuration_error_says_what_to_correct() -> None:
    assert "http.headers" in str(error(401))
    assert "http.url" in str(error(404))
    assert isinstance(error(404), SinkMisconfigured)


def test_a_failed_attempt_that_names_its_wait_gets_it_within_bounds() -> None:
    found, far = error(500, Retry_After="90"), error(500, Retry_After="99999999999999")

    assert isinstance(found, RetryLater)
    assert isinstance(far, RetryLater)
    assert (found.delay, far.delay) == (90.0, LONGEST_DELAY)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Sunday, 01-Mar-26 12:00:05 GMT", 5.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("1.5", None),
        ("²", None),
        ("Sun, 99 Mar 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
