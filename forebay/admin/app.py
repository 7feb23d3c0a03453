"""The application of the admin API: the token before everything, problems for every error."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from forebay import __version__
from forebay.admin import dead_letters, operating, redrives
from forebay.admin.parts import WHO, Parts
from forebay.admin.problems import (
    BROKER_UNAVAILABLE,
    HTTP_ERROR,
    INTERNAL,
    KINDS,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNPROCESSABLE,
    Refused,
    of_error,
)
from forebay.admin.work import BrokerOpener, Workshop, line_to
from forebay.errors import ForebayError
from forebay.http_problems import problem, send_answer, to_response
from forebay.storage.database import Database

log = structlog.get_logger()

LARGEST = 8 * 2**20
"""Bytes of a request: a body of any message that a broker takes, in base64 and in JSON."""

_ANSWERED = "forebay.answered"


class Keyring:
    """The tokens, as digests: comparing takes the same time whatever was sent."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._digests = {name: _digest(token.encode()) for name, token in tokens.items()}

    def holder(self, authorization: bytes) -> str | None:
        """The name of the token in an Authorization header, or None."""
        scheme, _, token = authorization.partition(b" ")
        sent = _digest(token.strip())
        # All of them, always: how long it takes must not tell which came close.
        matching = [n for n, digest in self._digests.items() if hmac.compare_digest(digest, sent)]
        return matching[0] if matching and scheme.lower() == b"bearer" else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Admin(FastAPI):
    """FastAPI behind a token: nothing of a request is read before its token was."""

    parts: Parts | None = None
    keyring: Keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"].startswith("/admin"):
            holder = self.keyring.holder(headers.get(b"authorization", b""))
            if holder is None:
                challenge = [(b"www-authenticate", b'Bearer realm="forebay"')]
                await send_answer(problem(UNAUTHENTICATED, UNAUTHENTICATED.advice, headers=challenge), send)
                return
            scope[WHO] = holder
        try:
            await super().__call__(scope, _limited(receive, headers.get(b"content-length", b"0")), send)
        except Exception:
            log.exception("request failed unexpectedly", method=scope["method"], path=scope["path"][:200])
            if not scope.get(_ANSWERED):
                await send_answer(problem(INTERNAL, INTERNAL.advice), send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def create_app(
    *,
    database: Callable[[], Database],
    broker: BrokerOpener,
    tokens: Mapping[str, str],
    queues: Sequence[str] = (),
) -> Admin:
    """
    The application; its lifespan opens the broker as soon as that can be reached.

    `tokens` by the name that the audit log gets; `queues` are those of the settings.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert isinstance(app, Admin)
        opened = database()
        async with line_to(broker) as line:
            workshop = Workshop(opened, line)
            workshop.start()
            app.parts = Parts(database=opened, line=line, workshop=workshop, queues=queues)
            try:
                yield
            finally:
                await workshop.close()
                app.parts = None
        opened.dispose()

    app = Admin(
        title="Forebay admin",
        version=__version__,
        summary="Dead letters, redrives, queues and the audit log of a Forebay installation",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            HTTPException: _http_error,
            RequestValidationError: _validation_error,
            ForebayError: _known_error,
            Exception: _internal,
        },
    )
    app.keyring = Keyring(tokens)

    def parts() -> Parts:
        if app.parts is None:
            raise Refused(BROKER_UNAVAILABLE, "The admin API is starting or stopping; ask again.")
        return app.parts

    for module in (dead_letters, redrives, operating):
        app.include_router(module.make_router(parts))

    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/problems/{name}", include_in_schema=False)
    async def show_problem(name: str) -> Response:
        kind = KINDS.get(name)
        if kind is None:
            return to_response(problem(NOT_FOUND, NOT_FOUND.advice))
        return PlainTextResponse(f"{kind.title} (HTTP {kind.status})\n\n{kind.advice}\n")

    return app


def _limited(receive: Receive, length: bytes) -> Receive:
    """`receive`, until more has come than any request of ours needs."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > LARGEST or (length.isdigit() and int(length) > LARGEST):
            raise Refused(TOO_LARGE, f"At most {LARGEST} bytes are taken.", limit=LARGEST)
        return message

    return limited


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refused):  # FastAPI's own words for whatever reading the body raised.
        return to_response(of_error(error.__cause__))
    kind = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(error.status_code, HTTP_ERROR)
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in (error.headers or {}).items()]
    detail = kind.advice if kind is not HTTP_ERROR else str(error.detail)
    return to_response(problem(kind, detail, status=error.status_code, headers=headers))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Without the values: they are the client's, and this text may be logged by it.
    found = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
    return to_response(problem(UNPROCESSABLE, UNPROCESSABLE.advice, errors=found))


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForebayError)
    answer = of_error(error)
    if answer.status >= 500:
        log.warning("request refused", path=request.url.path[:200], problem=answer.problem, reason=str(error))
    return to_response(answer)


async def _internal(request: Request, error: Exception) -> Response:
    request.scope[_ANSWERED] = True
    return to_response(problem(INTERNAL, INTERNAL.advice))


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Path of a page that explains the problem."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "retryable": {"type": "boolean", "description": "The same request may work later."},
    },
}


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """Add the token and our problems, and take out the error body that we never send."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/admin"):
                operation["security"] = [{"token": []}]
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    return document
