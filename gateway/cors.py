"""
Pages of other origins that may call this gateway from a browser (gateway.cors_origins).

Starlette's middleware around everything, the endpoints before the router too. Without
origins there is none of it, and a browser's own rule holds: no other origin.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.problems import ORIGIN_FORBIDDEN, problem

PREFLIGHT_LASTS = 600
"""Seconds for which a browser need not ask again."""

READABLE = (
    "Location",
    "Preference-Applied",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "WWW-Authenticate",
    "Forebay-Message-Id",
)
"""Headers of an answer that a page may read, besides those that it always may."""


class Cors(CORSMiddleware):
    """
    Answers a browser's question (preflight) and marks answers for the page that may read them.

    API keys travel in a header, not in a cookie: a browser never adds one by itself, and no
    credentials need be allowed.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=READABLE,
            max_age=PREFLIGHT_LASTS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            response.status_code = 204
            response.body = b""
            del response.headers["content-length"], response.headers["content-type"]
            return response
        origin = request_headers["origin"]
        answer = problem(
            ORIGIN_FORBIDDEN,
            f"Pages of {origin[:200]!r} may not call this gateway, or not with this method; the origins that"
            " may are in gateway.cors_origins.",
        )
        refused = Response(answer.body, answer.status)
        refused.raw_headers = list(answer.headers)
        return refused
