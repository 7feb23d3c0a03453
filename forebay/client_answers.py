"""What a gateway said to the client, and what may go wrong: the tree is drawn in `forebay.client`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

import aiohttp
import orjson

from forebay.errors import ForebayError

# Answers that ask for another try. 500 is among them: a gateway with a bug is restarted or
# replaced, and the idempotency key makes the extra try harmless.
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The gateway's promise: the message is stored, this safely."""

    id: str
    queue: str
    durability: str
    """replicated, synced, journaled or unsynced; see docs/drivers.md."""
    duplicate: bool
    """The gateway remembers having accepted this idempotency key before; there is still one message."""


class ClientError(ForebayError):
    """
    A message was not accepted, as far as this client knows.

    `status`, `type` and `detail` are the problem document's (status 0 and an empty type where
    there was no answer). `maybe_stored` says that some try may have reached the queue: sent again
    with `idempotency_key` it becomes one message, sent with a new key perhaps two.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int = 0,
        type: str = "",
        idempotency_key: str = "",
        maybe_stored: bool = False,
    ) -> None:
        super().__init__(f"{status}: {detail}" if status else detail)
        self.status = status
        self.type = type
        self.detail = detail
        self.idempotency_key = idempotency_key
        self.maybe_stored = maybe_stored


class Refused(ClientError):
    """The gateway said no for good."""


class Unauthorized(Refused):
    """No API key, or one that may not send here."""


class QueueUnknown(Refused):
    """The queue is not declared."""


class GaveUp(ClientError):
    """Every try until the deadline failed."""


class Unreachable(GaveUp):
    """The last try got no answer."""


class Busy(GaveUp):
    """The last answer was "not now"."""


class PartlyFailed(ClientError):
    """Some messages of a batch were not accepted."""

    def __init__(self, results: list[Accepted | ClientError]) -> None:
        failed = [r for r in results if isinstance(r, ClientError)]
        super().__init__(
            f"{len(failed)} of {len(results)} messages were not accepted; the first: {failed[0]}",
            maybe_stored=any(f.maybe_stored for f in failed),
        )
        self.results = results
        """One per message, in order."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why one try failed, and what the gateway said about the next one."""

    error: type[ClientError]
    detail: str
    status: int = 0
    problem: str = ""
    retry_after: float = 0.0
    maybe_stored: bool = False


class Unreadable(Exception):
    """A 202 without its promise: something between us and the gateway answered."""


def accepted_of(answer: bytes) -> Accepted:
    try:
        said = orjson.loads(answer)
        return Accepted(
            id=said["id"],
            queue=said["queue"],
            durability=said["durability"],
            duplicate=said.get("duplicate", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"a 202 that is not a gateway's: {answer[:100]!r}") from error


def trouble_of(response: aiohttp.ClientResponse, answer: bytes) -> Trouble:
    status = response.status
    problem, detail = _problem(answer, response.reason or "")
    match status:
        case 401 | 403:
            error: type[ClientError] = Unauthorized
        case 404:
            error = QueueUnknown
        case _ if status in _AGAIN:
            error = Busy
        case _:
            error = Refused
    return Trouble(
        error,
        detail,
        status=status,
        problem=problem,
        retry_after=retry_after_of(response.headers.get("Retry-After")),
        # A proxy's 502 or 504 hides what the gateway did, and so does a crash in the middle (500).
        maybe_stored=problem.endswith("outcome-unknown") or status in {500, 502, 504},
    )


def _problem(answer: bytes, reason: str) -> tuple[str, str]:
    """The type and the text of a problem document (RFC 9457), or what comes nearest."""
    try:
        said = orjson.loads(answer)
        return str(said.get("type", "")), str(said.get("detail") or said.get("title") or reason)
    except (ValueError, AttributeError):
        return "", answer[:200].decode("utf-8", "replace").strip() or reason


def retry_after_of(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 when it says nothing."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
        return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return 0.0
