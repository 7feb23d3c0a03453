"""One request at a time, and what became of it in our own errors: aiohttp's stop here."""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from collections.abc import Callable

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from consumers.sinks.http.guard import MAX_REDIRECTS, NotPublic, next_url, public_socket, same_target
from consumers.sinks.http.relay import TAKEN, Relay
from consumers.sinks.http.request import Headers
from consumers.sinks.http.verdicts import error_of, meaning_of, words
from consumers.sinks.settings import HttpSettings
from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.storage.answers import KeptAnswer

MAX_DETAIL_BYTES = 2_000
"""Bytes of an answer that are kept, for the dead letter."""
MAX_ANSWER_BYTES = 65_536
"""An answer is read as far as this, so that its connection can be used again; a longer one costs it."""
ANSWER_TIMEOUT = 2.0
"""Seconds for the rest of an answer whose status is there: the status alone decides."""
LARGE = 500_000
"""A body above this is sent in parts: in one it would hold up the event loop, and aiohttp warns of it."""


class Unanswered(Exception):
    """The request was sent, wholly or in part, and no answer came: it may have been handled."""


class Client:
    """Sends messages to one configured URL, on connections that are kept. Belongs to one event loop."""

    def __init__(
        self,
        settings: HttpSettings,
        url: str,
        tls: ssl.SSLContext,
        *,
        relay: Relay | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._url = URL(url)
        self._tls = tls
        self._headers = Headers(settings)
        self._relay = relay
        self._now = now
        self._proxy = settings.proxy.get_secret_value() if settings.proxy else None
        self._trusted: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None
        self.target = str(self._url.origin())
        """Whom we talk to, as it may be shown."""

    async def send(self, delivery: Delivery, heard: Callable[[KeptAnswer], None]) -> bool:
        """
        Have the service take one message; whether it says that it had it before.

        `heard` is given the answer that ends a request which was kept: that it is done, or refused.

        Raises:
            MessageRejected, RetryLater, RequestFailed, SinkUnavailable, SinkMisconfigured: as it answered.
            Unanswered
        """
        message = delivery.message
        method: str = self._settings.method
        url = self._url
        relay = self._relay if self._relay is not None and self._relay.takes(message) else None
        if relay is not None:
            method, url = relay.request_of(message)
        for _ in range(MAX_REDIRECTS + 1):
            ours = same_target(self._url, url)
            headers = self._headers.of(delivery, timestamp=int(self._now()), ours=ours)
            async with self._request(method, url, headers, message.body, ours) as answer:
                body, complete = await _read(answer, relay.max_answer_bytes if relay else MAX_DETAIL_BYTES)
            status = answer.status
            taken = relay is not None and status in TAKEN
            if 300 <= status < 400 and not taken and meaning_of(status, self._settings) == "configuration":
                url = next_url(
                    url, status, answer.headers.get("Location"),
                    follow=self._settings.follow_redirects, target=self.target,
                )  # fmt: skip
                self._check_proxied(url)
                continue
            detail = body[:MAX_DETAIL_BYTES].decode("utf-8", "replace")
            error = (
                None
                if taken
                else error_of(status, answer.headers, self._settings, target=self.target, detail=detail)
            )
            if relay is not None and (error is None or isinstance(error, MessageRejected)):
                heard(relay.heard(message, status, answer.headers, body if complete else None))
            if error is not None:
                raise error
            return answer.headers.get("Idempotent-Replayed", "").lower() == "true"
        raise SinkMisconfigured(f"{self.target} redirects more than {MAX_REDIRECTS} times; correct http.url")

    async def probe(self) -> None:
        """
        Return if the service answers at all. Asks with OPTIONS: that has no effect anywhere.

        What it answers says little about what it would say to a message (it may well
        know no OPTIONS), unless it says that it is down.

        Raises:
            SinkUnavailable, SinkMisconfigured
        """
        try:
            async with self._request("OPTIONS", self._url, self._headers.static, None, True) as answer:
                await _read(answer, 0)
        except Unanswered as error:
            raise SinkUnavailable(f"{self.target} does not answer: {error}") from error
        error_found = error_of(answer.status, answer.headers, self._settings, target=self.target)
        if isinstance(error_found, SinkUnavailable):
            raise error_found

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        for session in (self._trusted, self._guarded):
            if session is not None:
                await session.close()
        self._trusted = self._guarded = None

    # ---- one exchange

    def _request(
        self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | None, ours: bool
    ) -> _Exchange:
        return _Exchange(
            self._session(ours),
            method,
            url,
            headers,
            body,
            proxy=self._proxy,
            server_name=self._settings.tls.server_name if ours else None,
            target=self.target if ours else str(url.origin()),
        )

    def _session(self, ours: bool) -> aiohttp.ClientSession:
        if ours:
            if self._trusted is None:
                self._trusted = self._open(aiohttp.TCPConnector(limit=0, ssl=self._tls))
            return self._trusted
        if self._guarded is None:
            # Our client certificate and the authority of a private network are for the configured host.
            # One address after the other: a race would swallow that one was refused.
            guarded = aiohttp.TCPConnector(limit=0, happy_eyeballs_delay=None, socket_factory=public_socket)
            self._guarded = self._open(guarded)
        return self._guarded

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        settings = self._settings
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout, connect=settings.connect_timeout),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            trust_env=False,
        )

    def _check_proxied(self, url: URL) -> None:
        """Through a proxy we do not see the address that is connected to, and so cannot judge it."""
        if self._proxy is not None and not same_target(self._url, url):
            raise SinkMisconfigured(
                f"{self.target} redirects to {url.origin()}; through a proxy only redirects to the same host"
                " are followed: correct http.url"
            )


class _Exchange:
    """A request and its answer, as a context; what goes wrong on the way comes out as one of our errors."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: CIMultiDict[str],
        body: bytes | None,
        *,
        proxy: str | None,
        server_name: str | None,
        target: str,
    ) -> None:
        self._session = session
        self._method = method
        self._url = url
        self._headers = headers
        self._body = body
        self._proxy = proxy
        self._server_name = server_name
        self._target = target
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            try:
                self._answer = await self._ask()
            except (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                # A kept connection that the service closed at the same moment. Its id makes it safe to
                # send the message once more.
                self._answer = await self._ask()
        except Exception as error:
            self._raise(error)
            raise
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.release()

    async def _ask(self) -> aiohttp.ClientResponse:
        body = self._body
        return await self._session.request(
            self._method,
            self._url,
            headers=self._headers,
            data=io.BytesIO(body) if body is not None and len(body) > LARGE else body,
            allow_redirects=False,
            proxy=self._proxy,
            server_hostname=self._server_name,
        )

    def _raise(self, error: Exception) -> None:
        """Raise what `error` means to us; return if it means nothing that we know."""
        match error:
            case aiohttp.ClientConnectorCertificateError():
                raise SinkMisconfigured(
                    f"the certificate of {self._target} is not accepted: {error.certificate_error};"
                    " correct http.tls.ca_file or http.tls.server_name"
                ) from error
            case NotPublic():
                raise SinkMisconfigured(
                    f"a redirect leads to {self._target}, at {error.address}: a private address is only"
                    " connected to where it is http.url itself"
                ) from error
            case aiohttp.ClientHttpProxyError(status=407 | 403 | 405):
                raise SinkMisconfigured(
                    f"http.proxy answers {words(error.status)}; correct http.proxy"
                ) from error
            case aiohttp.ClientHttpProxyError():
                raise SinkUnavailable(
                    f"{self._target} cannot be reached: http.proxy answers {words(error.status)}"
                ) from error
            case aiohttp.ClientConnectorError():
                whom = "http.proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else self._target
                why = error.os_error.strerror or type(error.os_error).__name__
                raise SinkUnavailable(f"{whom} cannot be reached: {why}") from error
            case aiohttp.ConnectionTimeoutError():
                raise SinkUnavailable(f"{self._target} cannot be reached: no connection in time") from error
            case TimeoutError():
                raise Unanswered("no answer in time") from error
            case aiohttp.ClientConnectionError() | OSError():
                raise Unanswered("the connection ended before the answer") from error
            case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
                raise Unanswered("the answer is not HTTP") from error
            case aiohttp.InvalidURL():
                raise SinkMisconfigured(
                    f"{self._target} cannot be asked: {error}; correct http.url"
                ) from error


async def _read(answer: aiohttp.ClientResponse, wanted: int) -> tuple[bytes, bool]:
    """
    The first `wanted` bytes of an answer's body, and whether that is all of it.

    All of it is read if it is short, for the connection's sake.
    """
    found = bytearray()
    complete = False
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            async for part in answer.content.iter_any():
                found += part
                if len(found) > max(MAX_ANSWER_BYTES, wanted):
                    answer.close()
                    break
            else:
                complete = len(found) <= wanted
    except (aiohttp.ClientError, OSError):
        answer.close()
    return bytes(found[:wanted]), complete
