"""One source at work: what it sends is verified, named by its event, or answered as a test of the line."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping

import orjson
import structlog

from gateway.answer import Answer
from gateway.callers import Caller
from gateway.metrics import GatewayMetrics
from gateway.sources.recipe import NAMED, Delivery, Recipe, Unverified
from gateway.sources.secrets import key_of
from gateway.sources.settings import SourceSettings

log = structlog.get_logger()

MAX_CHALLENGE = 1000
"""Characters that are sent back, at the most."""

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")


class Source:
    """
    A named source with its keys.

    Its deliveries are a tenant of their own: an event's id never meets the idempotency keys of
    producers, or of another source.
    """

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        *,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.queue = settings.queue
        self.caller = Caller(tenant=f"source:{name}")
        self._recipes = (settings.hmac.recipe(),) if settings.scheme == "hmac" else NAMED[settings.scheme]
        self._keys = [key_of(secret, settings.secret_encoding) for secret in settings.secrets]
        self._tolerance = settings.tolerance
        self._keep = settings.keep_headers
        self._deliveries = metrics.deliveries
        self._clock = clock

    def verify(self, delivery: Delivery) -> Recipe:
        """
        The recipe by which the delivery is genuine.

        Raises:
            Unverified: it is not; counted, and told in the log.
        """
        recipe = next((r for r in self._recipes if r.header in delivery.headers), self._recipes[0])
        try:
            recipe.verify(delivery, self._keys, now=self._clock(), tolerance=self._tolerance)
        except Unverified as failed:
            self._deliveries.labels(self.name, failed.check).inc()
            # The log is limited by this text: one check at one source must not hide another.
            log.warning(
                f"a delivery to {self.name} was refused, its signature: {failed.check}",
                source=self.name,
                check=failed.check,
                why=str(failed),
            )
            raise
        return recipe

    def reply(self, recipe: Recipe, delivery: Delivery) -> Answer | None:
        """The answer to a genuine delivery that is no event: a ping, or a question whether we are there."""
        if recipe.ping is not None and delivery.headers.get(recipe.ping[0]) == recipe.ping[1]:
            self._deliveries.labels(self.name, "ping").inc()
            return _json({"source": self.name, "queue": self.queue, "verified": True, "stored": False})
        if recipe.challenge_type:
            document = _document(delivery.body)
            challenge = document.get("challenge")
            if (
                document.get("type") == recipe.challenge_type
                and isinstance(challenge, str)
                and len(challenge) <= MAX_CHALLENGE
            ):
                self._deliveries.labels(self.name, "challenge").inc()
                return _text(challenge)
        self._deliveries.labels(self.name, "verified").inc()
        return None

    def event_id(self, recipe: Recipe, delivery: Delivery) -> str | None:
        """What the service calls the event, as an idempotency key; None if it has no name."""
        found: object = delivery.headers.get(recipe.id_header) if recipe.id_header else None
        if recipe.id_pointer:
            found = _document(delivery.body)
            for name in recipe.id_pointer[1:].split("/"):
                found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str) or not found:
            return None
        # Keys are visible ASCII. An id that is more than that is named by its digest.
        return found if _VISIBLE.fullmatch(found) else f"sha256:{hashlib.sha256(found.encode()).hexdigest()}"

    def kept(self, recipe: Recipe, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers that belong to the message."""
        found = {name: headers[name] for name in (*recipe.keep, *self._keep) if name in headers}
        return found | {"webhook-source": self.name}


def _document(body: bytes) -> dict[str, object]:
    """A JSON object; an empty one for anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _json(document: dict[str, object]) -> Answer:
    return _answer(b"application/json", orjson.dumps(document))


def _text(text: str) -> Answer:
    answer = _answer(b"text/plain; charset=utf-8", text.encode())
    # The text is the sender's: no browser may take it for a page of ours.
    answer.headers.append((b"x-content-type-options", b"nosniff"))
    return answer


def _answer(content_type: bytes, body: bytes) -> Answer:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    return Answer(status=200, headers=headers, body=body)
