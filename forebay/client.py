"""
A small client for producers: every message is sent with an idempotency key, so that trying again is safe.

    async with Client("http://127.0.0.1:8080") as client:
        accepted = await client.send("orders", b'{"order": 1}', content_type="application/json")
        await client.send_batch("orders", [b'{"order": 2}', b'{"order": 3}'], content_type="application/json")

What may go wrong, and what to do about it:

ClientError
├── Refused           the gateway said no for good: sending the same message again changes nothing
│   ├── Unauthorized  no API key, or one that may not send here (401, 403)
│   └── QueueUnknown  the queue is not declared (404)
├── GaveUp            every try until the deadline failed; send again with the same idempotency key
│   ├── Unreachable   the last try got no answer
│   └── Busy          the last answer was "not now" (429, 5xx)
└── PartlyFailed      some messages of a batch were not accepted; `results` has the reason for each
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp

from forebay.client_answers import (
    Accepted,
    Busy,
    ClientError,
    GaveUp,
    PartlyFailed,
    QueueUnknown,
    Refused,
    Trouble,
    Unauthorized,
    Unreachable,
    Unreadable,
    accepted_of,
    retry_after_of,
    trouble_of,
)
from forebay.client_batches import CONTENT_TYPE, Item, chunks_of, item_result, line_of, results_of
from forebay.ids import new_id

__all__ = [
    "DEFAULT_URL",
    "Accepted",
    "Busy",
    "Client",
    "ClientError",
    "GaveUp",
    "Item",
    "PartlyFailed",
    "QueueUnknown",
    "Refused",
    "SyncClient",
    "Unauthorized",
    "Unreachable",
]

DEFAULT_URL: Final = "http://127.0.0.1:8080"

T = TypeVar("T")

_BASE = 0.1
_CAP = 5.0


class Client:
    """
    Sends messages to one gateway, over at most `connections` connections.

    `retry_for` is how long one message is tried in all, `timeout` how long one try may take, in
    seconds. `on_retry` is told why each further try is needed. Belongs to one event loop; use it as
    an async context manager or call `close`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        retry_for: float = 60.0,
        timeout: float = 15.0,
        connections: int = 64,
        rng: random.Random | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._base = url.rstrip("/")
        if not self._base.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not a gateway's address; write http://host:port")
        self._api_key = api_key
        self._retry_for = retry_for
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connections = connections
        self._rng = rng or random.Random()
        self._on_retry = on_retry
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, str], str] = {}
        self.retries = 0
        """Tries beyond each message's first, so far."""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        idempotency_key: str | None = None,
        ordering_key: str | None = None,
        delay: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Accepted:
        """
        Send one message; return once the gateway has stored it.

        Without an idempotency key a random one is made, so that tries of this call are one
        message; give your own to make calls one message. `delay` is in seconds. `headers` stay
        with the message (Forebay-Meta-<name>); consumers see them under lower-case names.

        Raises:
            Refused: at once, with nothing stored.
            GaveUp: after `retry_for` seconds of trying.
        """
        key = idempotency_key or new_id()
        sent_headers = {"Content-Type": content_type, "Idempotency-Key": key}
        if ordering_key is not None:
            sent_headers["Forebay-Ordering-Key"] = ordering_key
        if delay is not None:
            sent_headers["Forebay-Delay"] = str(delay)
        if headers:
            sent_headers |= {f"Forebay-Meta-{name}": value for name, value in headers.items()}

        deadline = asyncio.get_running_loop().time() + self._retry_for
        attempt = 0
        maybe_stored = False
        while True:
            attempt += 1
            outcome = await self._try(queue, body, sent_headers)
            if isinstance(outcome, Accepted):
                return outcome
            maybe_stored |= outcome.maybe_stored
            wait = self._wait(attempt, outcome.retry_after)
            out_of_time = asyncio.get_running_loop().time() + wait > deadline
            if issubclass(outcome.error, Refused) or out_of_time:
                raise outcome.error(
                    outcome.detail,
                    status=outcome.status,
                    type=outcome.problem,
                    idempotency_key=key,
                    maybe_stored=maybe_stored,
                )
            self.retries += 1
            if self._on_retry is not None:
                self._on_retry(outcome.detail)
            await asyncio.sleep(wait)

    async def send_batch(
        self,
        queue: str,
        items: Sequence[bytes | Item],
        *,
        content_type: str = "application/octet-stream",
        idempotency_key: str | None = None,
    ) -> list[Accepted]:
        """
        Send many messages, a thousand per request; return once all of them are stored, in their order.

        Message n gets the idempotency key "<idempotency_key>/n", from 0, if it has none of its own.
        What the gateway could not store is tried again, by itself and under the same key, until nothing
        more has been stored for `retry_for` seconds.

        Raises:
            PartlyFailed: some were refused, or given up. The others are stored.
        """
        key = idempotency_key or new_id()
        lines = [
            line_of(
                item if isinstance(item, Item) else Item(body=item),
                key=f"{key}/{n}",
                content_type=content_type,
            )
            for n, item in enumerate(items)
        ]
        results: list[Accepted | ClientError | None] = [None] * len(lines)
        for chunk in chunks_of(lines):
            await self._send_lines(queue, key, lines, chunk, results)
        found = [r for r in results if r is not None]
        accepted = [r for r in found if isinstance(r, Accepted)]
        if len(accepted) < len(found):
            raise PartlyFailed(found)
        return accepted

    async def _send_lines(
        self,
        queue: str,
        key: str,
        lines: Sequence[bytes],
        chunk: Sequence[int],
        results: list[Accepted | ClientError | None],
    ) -> None:
        """Send these of the lines until each has its result."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._retry_for
        attempt = 0
        doubtful: set[int] = set()
        while chunk:
            attempt += 1
            outcome = await self._try_batch(queue, b"".join([lines[n] for n in chunk]))
            troubles: dict[int, Trouble] = {}
            looked_at = len(chunk)
            if isinstance(outcome, Trouble):
                troubles = dict.fromkeys(chunk, outcome)
                wait = outcome.retry_after
            else:
                said, wait = outcome
                looked_at = len(said)
                for n, result in zip(chunk, said, strict=False):
                    found = item_result(queue, result)
                    if isinstance(found, Accepted):
                        results[n] = found
                    else:
                        troubles[n] = found
            doubtful.update(n for n, t in troubles.items() if t.maybe_stored)
            if len(troubles) < looked_at:
                deadline, attempt = loop.time() + self._retry_for, 0
            wait = self._wait(max(1, attempt), wait) if troubles else 0.0
            out_of_time = loop.time() + wait > deadline
            again: list[int] = [n for n in chunk if n not in troubles and results[n] is None]
            for n, trouble in troubles.items():
                if issubclass(trouble.error, Refused) or out_of_time:
                    results[n] = trouble.error(
                        trouble.detail,
                        status=trouble.status,
                        type=trouble.problem,
                        idempotency_key=f"{key}/{n}",
                        maybe_stored=n in doubtful,
                    )
                else:
                    again.append(n)
            chunk = sorted(again)
            if chunk:
                self.retries += 1
                if troubles:
                    if self._on_retry is not None:
                        self._on_retry(next(iter(troubles.values())).detail)
                    await asyncio.sleep(wait)

    async def _try_batch(self, queue: str, body: bytes) -> tuple[list[dict[str, Any]], float] | Trouble:
        """What became of each item, as far as they were looked at, and when to come again."""

        def read(
            response: aiohttp.ClientResponse, answer: bytes
        ) -> tuple[list[dict[str, Any]], float] | Trouble:
            results = results_of(answer)
            # One without any result would be asked for the same again for ever.
            if not results:
                return trouble_of(response, answer)
            return results, retry_after_of(response.headers.get("Retry-After"))

        return await self._post(queue, "batch", body, {"Content-Type": CONTENT_TYPE}, read)

    def _wait(self, attempt: int, retry_after: float) -> float:
        """Seconds before the next try: full jitter on a doubling ceiling, on top of what was asked for."""
        # On top, not instead: all who were refused in the same second must not come back in the same one.
        return retry_after + self._rng.uniform(0.0, min(_CAP, _BASE * 2.0 ** min(attempt - 1, 30)))

    async def _try(self, queue: str, body: bytes, headers: Mapping[str, str]) -> Accepted | Trouble:
        def read(response: aiohttp.ClientResponse, answer: bytes) -> Accepted | Trouble:
            return accepted_of(answer) if response.status == 202 else trouble_of(response, answer)

        return await self._post(queue, "messages", body, headers, read)

    async def _post(
        self,
        queue: str,
        route: str,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[aiohttp.ClientResponse, bytes], T | Trouble],
    ) -> T | Trouble:
        session = self._session or self._open()
        url = self._urls.get((queue, route))
        if url is None:
            url = self._urls[queue, route] = f"{self._base}/v1/queues/{quote(queue, safe='')}/{route}"
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return read(response, await response.read())
        except aiohttp.ClientConnectorError as error:
            return Trouble(Unreachable, f"no connection to {self._base}: {_said_by_the_system(error)}")
        except aiohttp.ConnectionTimeoutError:
            return Trouble(Unreachable, f"no connection to {self._base} in time")
        except aiohttp.InvalidURL as error:
            raise ValueError(f"{url!r} is not an address: {error}") from error
        except TimeoutError:
            return Trouble(
                Unreachable,
                f"{self._base} did not answer within {self._timeout.total:g} s",
                maybe_stored=True,
            )
        except (aiohttp.ClientError, ConnectionError, Unreadable) as error:
            # The request was on its way: the gateway may have stored the message and died before saying so.
            return Trouble(Unreachable, f"{self._base} broke off: {error or 'closed'}", maybe_stored=True)

    def _open(self) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            headers=headers,
            timeout=self._timeout,
            auto_decompress=False,
        )
        return self._session


class SyncClient:
    """`Client` for code without an event loop. Not for use inside one."""

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, *, retry_for: float = 60.0
    ) -> None:
        self._client = Client(url, api_key, retry_for=retry_for)
        self._runner = asyncio.Runner()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self,
        queue: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        idempotency_key: str | None = None,
        ordering_key: str | None = None,
        delay: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Accepted:
        """As `Client.send`; blocks until the message is accepted or given up."""
        return self._runner.run(
            self._client.send(
                queue,
                body,
                content_type=content_type,
                idempotency_key=idempotency_key,
                ordering_key=ordering_key,
                delay=delay,
                headers=headers,
            )
        )

    def send_batch(
        self,
        queue: str,
        items: Sequence[bytes | Item],
        *,
        content_type: str = "application/octet-stream",
        idempotency_key: str | None = None,
    ) -> list[Accepted]:
        """As `Client.send_batch`; blocks until all messages are accepted or given up."""
        return self._runner.run(
            self._client.send_batch(queue, items, content_type=content_type, idempotency_key=idempotency_key)
        )

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


def _said_by_the_system(error: aiohttp.ClientConnectorError) -> str:
    """Connection refused, Name or service not known, …"""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error})"
    if isinstance(error.os_error, ssl.SSLError):
        # Its numbers are those of TLS: 1 is not "Operation not permitted".
        return f"no TLS there ({error.os_error.reason}); is it http:// instead of https://?"
    code = error.os_error.errno
    # Name resolution has numbers of its own, some of them negative.
    if code is not None and code > 0 and not isinstance(error, aiohttp.ClientConnectorDNSError):
        return os.strerror(code)
    return error.os_error.strerror or str(error)
