"""Pages for people: the API's documentation and what each problem means. No CDN, no build step."""

from __future__ import annotations

import html
from importlib.util import find_spec
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

from gateway.problems import KINDS, Kind

ASSETS = "/docs/assets"


def assets_directory() -> Path:
    """Where Swagger UI's files are: in the package fastapi-offline, of which nothing is imported."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package fastapi-offline is not installed; reinstall forebay")
    return Path(spec.origin).parent / "static"


def docs_page() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Forebay API",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )


_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:3em auto;padding:0 1em;color:#222}"


def problem_page(kind: Kind) -> str:
    again = "may work later" if kind.retryable else "will not work"
    return _page(
        kind.title,
        f"<p><code>{kind.name}</code> · HTTP {kind.status}</p><p>{html.escape(kind.advice)}</p>"
        f"<p>Sending the same request again {again}.</p>"
        '<p><a href="/problems">All problems</a> · <a href="/docs">The API</a></p>',
    )


def problems_page() -> str:
    rows = "".join(
        f'<li><a href="{kind.type}">{kind.name}</a> ({kind.status}): {html.escape(kind.title)}</li>'
        for kind in KINDS.values()
    )
    return _page("Problems", f"<ul>{rows}</ul>")


def _page(title: str, body: str) -> str:
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{body}</html>"
    )
