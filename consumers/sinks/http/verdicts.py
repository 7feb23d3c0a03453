"""What an answer means: for the message, for the destination, or for who configured it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal

from consumers.sinks.settings import HttpSettings
from forebay.errors import MessageRejected, RetryLater, SinkError, SinkMisconfigured, SinkUnavailable

Meaning = Literal["done", "message", "retry", "destination", "configuration"]

RETRY = frozenset({
    408,  # the request did not arrive in the service's time
    409,  # "the first request with this key is still being handled" (draft-ietf-httpapi-idempotency-key)
    423, 425,
})  # fmt: skip
DESTINATION = frozenset({
    429, 502, 503, 504, 507,
    521, 522, 523,  # Cloudflare: the service behind it is down or cannot be reached
})  # fmt: skip
CONFIGURATION = frozenset({401, 402, 403, 404, 405, 407, 421, 426, 501, 505, 511})

LONGEST_DELAY = 3_600.0
"""A message whose failure names a longer wait is tried again after this, in seconds."""


class RequestFailed(SinkError):
    """This request did not work, and another may: the message is tried again, by the policy."""


def meaning_of(status: int, settings: HttpSettings) -> Meaning:
    """What `status` says; the settings' lists before ours. 500 says nothing certain: it is tried again."""
    chosen: tuple[tuple[Meaning, tuple[int, ...]], ...] = (
        ("message", settings.message_statuses),
        ("retry", settings.retry_statuses),
        ("destination", settings.destination_statuses),
        ("configuration", settings.configuration_statuses),
    )
    for meaning, statuses in chosen:
        if status in statuses:
            return meaning
    if 200 <= status < 300:
        return "done"
    if status in CONFIGURATION or status < 400:
        return "configuration"
    if status in DESTINATION:
        return "destination"
    if status in RETRY or status >= 500:
        return "retry"
    return "message"


def error_of(
    status: int,
    headers: Mapping[str, str],
    settings: HttpSettings,
    *,
    target: str,
    detail: str = "",
    now: datetime | None = None,
) -> SinkError | None:
    """
    The error that an answer stands for; None if the message is done.

    Reasons are of our making: what the service wrote may quote the message, and is
    only a dead letter's `detail`.
    """
    meaning = meaning_of(status, settings)
    if meaning == "done":
        return None
    answer = words(status)
    wait = retry_after(headers.get("Retry-After"), now or datetime.now(UTC))
    if meaning == "message":
        return MessageRejected(answer, error_class=f"http-{status}", detail=detail)
    if meaning == "destination":
        return SinkUnavailable(f"{target} answers {answer}", retry_after=wait)
    if meaning == "configuration":
        return SinkMisconfigured(f"{target} answers {answer}; {_advice(status)}")
    if wait is not None:
        return RetryLater(min(wait, LONGEST_DELAY), answer)
    return RequestFailed(answer)


def words(status: int) -> str:
    """The status with its name in the standard: the service's own phrase is its text."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header: a number, or a date. None if there is none, or it cannot be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)  # "-0000": UTC, and the library tells so by naming no zone.
    return max(0.0, (when - now).total_seconds())


def _advice(status: int) -> str:
    if status == 407:
        return "correct user and password in http.proxy"
    if status in (401, 403):
        return "correct the credentials in http.headers, or the service's permissions"
    if status in (404, 421):
        return "correct http.url"
    if status in (405, 501):
        return "correct http.method or http.url"
    return "correct the settings in the queue's http table, or the service"
