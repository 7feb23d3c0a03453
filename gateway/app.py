"""The HTTP application: the hot endpoints before FastAPI's router, problems for every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from forebay import __version__
from forebay.brokers.api import DURABILITIES, Broker, Durability
from forebay.errors import SettingsError
from forebay.http_problems import send_answer, to_response
from gateway import openapi, pages
from gateway.answer import Answer
from gateway.asking import Questions
from gateway.batches.endpoint import BatchEndpoint
from gateway.bodies import BodyReader
from gateway.callers import CALLER, asks_for_a_key
from gateway.cors import Cors
from gateway.depths import warn_of_left_behind
from gateway.endpoint import MessagesEndpoint
from gateway.fastlane import FastLane
from gateway.forward.endpoint import ForwardEndpoint, Target
from gateway.health import Health
from gateway.ingest import Ingest
from gateway.keyring import Keyring
from gateway.metrics import GatewayMetrics
from gateway.outlets.opening import Elsewhere, checks, open_outlets
from gateway.outlets.publishing import Outlets
from gateway.problems import (
    HTTP_ERROR,
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    NOT_READY,
    UNPROCESSABLE,
    problem,
)
from gateway.queues import QueueRegistry
from gateway.routes import Parts, make_router
from gateway.schemas import Schema
from gateway.settings import GatewaySettings
from gateway.sources.endpoint import SourcesEndpoint
from gateway.sources.settings import SourceSettings
from gateway.sources.source import Source
from gateway.status import StatusLookup
from gateway.tracing import traced, tracing
from gateway.waiting import Waiting, looker

if TYPE_CHECKING:
    from forebay.storage.database import Database

log = structlog.get_logger()


class Gateway(FastAPI):
    """FastAPI with a few endpoints in front of its router, and a truthful answer when all else fails."""

    parts: Parts | None = None
    """Set while the lifespan runs."""
    keys_needed = False
    """Requests without an API key are refused."""
    cors: Cors | None = None
    fast_lane: FastLane | None = None
    """For the protocol: what serves plain requests past all of this; set while the lifespan runs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif self.cors is None:
            await self._serve(scope, receive, send)
        else:
            await self.cors(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.parts is not None:
                path = scope["path"]
                if self.keys_needed and asks_for_a_key(path):
                    caller = self.parts.keyring.caller(scope["headers"])
                    if isinstance(caller, Answer):
                        await send_answer(self.parts.ingest.refused(caller), send)
                        return
                    scope[CALLER] = caller
                    if caller.quota is not None:
                        send = caller.quota.telling(send)
                for endpoint in self.parts.endpoints:
                    if endpoint.matches(path):
                        await endpoint(scope, receive, send)
                        return
            await super().__call__(scope, receive, send)
        except Exception:
            log.exception("request failed unexpectedly", method=scope["method"], path=scope["path"][:200])
            if not scope.get(_ANSWERED):
                await send_answer(problem(INTERNAL, INTERNAL.advice), send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.complete(super().openapi(), keys_needed=self.keys_needed)
        return self.openapi_schema

    def drain(self) -> None:
        """From now on /readyz says 503; requests are still served, and none waits for what becomes of it."""
        if self.parts is not None:
            self.parts.health.draining = True
            self.parts.waiting.close()


def create_app(
    *,
    broker: Callable[[], AbstractAsyncContextManager[Broker]],
    settings: GatewaySettings,
    queues: QueueRegistry,
    database: Callable[[], Database] | None = None,
    drained: Sequence[str] = (),
    elsewhere: Elsewhere | None = None,
    sources: Mapping[str, SourceSettings] | None = None,
    schemas: Mapping[str, Schema] | None = None,
    targets: Mapping[str, Target] | None = None,
    registry: CollectorRegistry | None = None,
) -> Gateway:
    """
    The application; its lifespan opens the broker, declares the queues, and closes the broker.

    Without `database` the status route answers 503 `status-unavailable`, and what only
    consumers know of their queues is null. `drained` are the brokers that are drained, as
    URLs without credentials: nobody need be warned of them.

    With `elsewhere` messages that the broker does not take go there, and it need not be there
    at the start.

    `sources` are the services whose webhooks are taken, `targets` those whose requests are kept, by name.

    `schemas` are what bodies must fit, by queue.

    Raises SettingsError for a source without a queue.

    The lifespan raises SettingsError for settings this broker cannot satisfy, and
    BrokerUnavailable.
    """
    registry = registry or CollectorRegistry()
    metrics = GatewayMetrics(registry)
    _check_sources(sources or {}, queues)

    async def prepare(opened: Broker) -> None:
        await _check_durability(opened, opened.capabilities.durability, settings)
        for queue, durability in (await queues.declare_all(opened)).items():
            await _check_durability(opened, durability, settings, queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert isinstance(app, Gateway)
        async with AsyncExitStack() as stack:
            opened: Broker
            publisher: Broker | Outlets
            if elsewhere is None:
                opened = publisher = await stack.enter_async_context(broker())
                await prepare(opened)
                health = Health(opened.ping)
            else:
                publisher = await stack.enter_async_context(
                    open_outlets(
                        broker, elsewhere, prepare=prepare, settings=settings, queues=queues, metrics=metrics
                    )
                )
                opened = publisher.outlets[0].broker
                health = Health(
                    partial(publisher.ping, settings.min_durability),
                    # By whatever outlet: those of the broker and the journal are `more`.
                    name="publishing",
                    more=partial(checks, publisher),
                )
            ingest = Ingest(publisher, settings, metrics=metrics, health=health, schemas=schemas)
            keyring = Keyring(settings)
            watching = asyncio.create_task(keyring.watch(), name="API keys")
            bodies = BodyReader(ingest, timeout=settings.body_timeout)
            questions = Questions(database)
            # Without a database nobody could ever be told anything.
            waiting = Waiting(
                looker(questions),
                most=settings.max_waiting if database else 0,
                counted=metrics.waiting.set,
            )
            warning = asyncio.create_task(warn_of_left_behind(opened, questions, drained))
            batches = BatchEndpoint(
                ingest,
                queues,
                opened,
                request_timeout=settings.request_timeout,
                body_timeout=settings.body_timeout,
                max_items=settings.max_batch_items,
            )
            app.parts = Parts(
                broker=opened,
                endpoints=traced(
                    (
                        MessagesEndpoint(ingest, queues, opened, bodies, waiting),
                        batches,
                        ForwardEndpoint(ingest, bodies, waiting, targets or {}, metrics),
                        SourcesEndpoint(
                            ingest,
                            queues,
                            opened,
                            bodies,
                            {n: Source(n, s, metrics=metrics) for n, s in (sources or {}).items()},
                        ),
                    )
                ),
                health=health,
                ingest=ingest,
                keyring=keyring,
                questions=questions,
                status=StatusLookup(questions, ingest.recent, waiting),
                waiting=waiting,
            )
            # Until somebody checks; not 0, which would be an alarm where nobody does.
            metrics.ready.set(1)
            metrics.begin(queues.names)
            # Spans are made around endpoints, which a plain request has none of.
            if settings.fast_lane and not tracing():
                app.fast_lane = FastLane(ingest, keyring if app.keys_needed else None, queues)
            try:
                yield
            finally:
                health.draining = True
                warning.cancel()
                watching.cancel()
                waiting.close()
                await batches.close()
                await ingest.close()
                questions.close()
                if app.fast_lane is not None:
                    app.fast_lane.closed = True
                app.parts = app.fast_lane = None

    app = Gateway(
        title="Forebay",
        version=__version__,
        summary="A durable queue between HTTP producers and a slow or dead database",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Requests that send messages have spans of ours; probes and pages need none.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={
            HTTPException: _http_error,
            RequestValidationError: _validation_error,
            _NotStarted: _not_started,
            Exception: _internal,
        },
    )

    app.keys_needed = settings.keys_file is not None
    if settings.cors_origins:
        app.cors = Cors(app._serve, settings.cors_origins)

    def parts() -> Parts:
        if app.parts is None:
            raise _NotStarted
        return app.parts

    app.include_router(make_router(parts, queues, metrics, registry))
    app.mount(pages.ASSETS, StaticFiles(directory=pages.assets_directory()))
    return app


_ANSWERED = "forebay.answered"
"""In a scope: FastAPI answered the failure, before it raised it on for us to log."""


class _NotStarted(Exception):
    """A request came before the lifespan began or after it ended."""


async def _check_durability(
    broker: Broker, reached: Durability, settings: GatewaySettings, queue: str | None = None
) -> None:
    if DURABILITIES.index(reached) < DURABILITIES.index(settings.min_durability):
        what = "this broker" if queue is None else f"queue {queue!r} on this broker"
        findings = await broker.examine([] if queue is None else [queue])
        findings = [f for f in findings if f.check == "durability" and f.verdict != "ok"]
        why = "".join(f" ({f.text}; {f.fix})" if f.fix else f" ({f.text})" for f in findings)
        raise SettingsError(
            f"gateway.min_durability is {settings.min_durability!r}, but {what} reaches only"
            f' {reached!r}{why}; choose another broker.url, or set gateway.min_durability = "{reached}"'
            f" (FOREBAY_GATEWAY__MIN_DURABILITY={reached})"
        )


def _check_sources(sources: Mapping[str, SourceSettings], queues: QueueRegistry) -> None:
    """Every source has a queue, or nothing starts: a delivery must not find out."""
    for name, source in sources.items():
        if source.queue not in queues and not queues.declare_on_first_use:
            raise SettingsError(
                f"sources.{name}.queue is {source.queue!r}, which is not declared;"
                f" add it to queue_names, or write [queues.{source.queue}]"
            )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(error.status_code, HTTP_ERROR)
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in (error.headers or {}).items()]
    return to_response(
        problem(
            kind,
            kind.advice if kind is not HTTP_ERROR else str(error.detail),
            status=error.status_code,
            title=None if kind is not HTTP_ERROR else str(error.detail),
            headers=headers,
        )
    )


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Without the values: they are the client's, and this text may be logged by it.
    found = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
    return to_response(problem(UNPROCESSABLE, UNPROCESSABLE.advice, errors=found))


async def _internal(request: Request, error: Exception) -> Response:
    request.scope[_ANSWERED] = True
    return to_response(problem(INTERNAL, INTERNAL.advice))


async def _not_started(request: Request, error: Exception) -> Response:
    return to_response(problem(NOT_READY, NOT_READY.advice))
