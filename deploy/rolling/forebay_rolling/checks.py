"""How an instance is asked: /readyz, and one message that it must take."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from forebay_rolling.config import Checks
from forebay_rolling.errors import CheckFailed
from forebay_rolling.rolling import Instance

ASK_TIMEOUT = 5.0
"""Seconds that one answer may take."""
PAUSE = 0.1
"""Seconds between two looks at /readyz."""

CANARY = b'{"canary": true}'


class Ask(Protocol):
    """One HTTP request to an instance; raises OSError or HTTPException where no answer came."""

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]: ...


def ready(ask: Ask) -> str | None:
    """Why it is not ready; None: it is."""
    try:
        status, body = ask("GET", "/readyz")
    except (OSError, http.client.HTTPException) as error:
        return f"/readyz does not answer: {error or type(error).__name__}"
    return None if status == 200 else f"/readyz says {status}{_detail(body)}"


def canary(ask: Ask, checks: Checks) -> str | None:
    """
    Why it does not take a message as it should; None: it does.

    Key and body are always the same, so all canaries there ever were are one message: one row of a
    queue of its own, however often something is rolled.
    """
    headers = {"Content-Type": "application/json", "Idempotency-Key": "forebay-canary"}
    path = f"/v1/queues/{checks.canary_queue}/messages"
    try:
        status, body = ask("POST", path, CANARY, headers)
    except (OSError, http.client.HTTPException) as error:
        return f"the canary got no answer: {error or type(error).__name__}"
    if status == 404:
        return (
            f"the canary was answered 404: name the queue {checks.canary_queue} in the settings"
            " (queue_names), or another one in checks.canary_queue"
        )
    if status != 202:
        return f"the canary was answered {status}{_detail(body)}"
    try:
        answer = json.loads(body)
        taken = answer["queue"] == checks.canary_queue and answer["id"] and answer["durability"]
    except (ValueError, KeyError, TypeError):
        taken = False
    return None if taken else f"the canary was answered 202 without what belongs to it: {body[:200]!r}"


def prove(
    instance: Instance, ask: Ask, checks: Checks, ended: Callable[[], str | None], *, take_canary: bool
) -> None:
    """
    Return when the instance is ready, took a canary and stayed ready for `checks.settle` seconds.

    `ended` says how its process ended, or None while it runs.

    Raises:
        CheckFailed: what it did instead.
    """
    deadline = time.monotonic() + checks.start_timeout

    def wait_for(check: Callable[[], str | None], what: str) -> None:
        while True:
            if (end := ended()) is not None:
                raise CheckFailed(f"{instance} {end}")
            if (trouble := check()) is None:
                return
            if time.monotonic() > deadline:
                raise CheckFailed(f"{instance} {what} within {checks.start_timeout:g} s: {trouble}")
            time.sleep(PAUSE)

    wait_for(lambda: ready(ask), "was not ready")
    if take_canary and (trouble := canary(ask, checks)) is not None:
        raise CheckFailed(f"{instance} is ready, but {trouble}")
    settled = time.monotonic() + checks.settle
    while time.monotonic() < settled:
        if (end := ended()) is not None:
            raise CheckFailed(f"{instance} was ready, and then {end}")
        if (trouble := ready(ask)) is not None:
            raise CheckFailed(f"{instance} was ready, and then no longer: {trouble}")
        time.sleep(PAUSE)


def by_address(address: str, key_file: Path | None = None) -> Ask:
    """Over the network, with the API key of a file where messages are sent."""

    def ask(
        method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        sent = dict(headers or {})
        if key_file is not None and method == "POST":
            sent["Authorization"] = f"Bearer {_key(key_file)}"
        connection = http.client.HTTPConnection(address, timeout=ASK_TIMEOUT)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(65_536)
        finally:
            connection.close()

    return ask


def _key(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        # By now something was touched, and must go back.
        raise CheckFailed(f"cannot read checks.canary_key_file {file}: {error.strerror}") from error


def _detail(body: bytes) -> str:
    """What a problem document says."""
    try:
        problem = json.loads(body)
        return f": {problem.get('detail') or problem.get('title') or ''}"[:300]
    except (ValueError, AttributeError):
        return ""
