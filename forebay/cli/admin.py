"""`forebay admin`."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DatabaseUrlOption,
    LogLevelOption,
    VerboseOption,
    load,
    log_to_stderr,
    require_url,
)
from forebay.cli._output import note
from forebay.cli.gateway import url_of

if TYPE_CHECKING:
    from forebay.storage.database import Database


def admin(
    host: Annotated[str | None, typer.Option("--host", help="Where to listen; 127.0.0.1 by default.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Where to listen; 8081 by default, 0 picks a free port.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = "info",
    verbose: VerboseOption = False,
) -> None:
    """
    Serve the API for operators: dead letters, redrives, queues, audit.

    Examples:
      forebay admin
      FOREBAY_ADMIN__TOKEN_FILE=/run/secrets/admin forebay admin --host 0.0.0.0

    Every request needs `Authorization: Bearer TOKEN`. Without a token in the settings one is made
    at the start and printed here, once; beyond loopback it must be set. What it can do is in
    /openapi.json, and in docs/dead-letters.md. It needs the URLs of the database and the broker;
    a broker that is away stops only what sends. SIGTERM ends it: redrives go on in the next one.
    """
    from forebay.cli._process import run_until_stopped, starting, until_reachable
    from forebay.settings import Flag
    from forebay.wiring import make_admin, make_database

    log_to_stderr(log_level, verbose)
    flags = [
        Flag("admin.host", "--host", host),
        Flag("admin.port", "--port", port),
        Flag("broker.url", "--broker-url", broker_url),
        Flag("database.url", "--database-url", database_url),
    ]
    settings = load(config, flags).settings
    require_url(settings, "broker", "database")

    with starting("the admin API") as start:
        from forebay.admin.server import bind, serve

        sock = bind(settings.admin)
        tokens = settings.admin.named()
        made = None if tokens else secrets.token_urlsafe(24)

        def started() -> None:
            start.done()
            url = url_of(settings.admin.host, sock)
            note(f"{url} is ready; {url}/openapi.json tells what it can do")
            if made is not None:
                note(f"no token is set; until this process ends it is {made}")

        async def main(stop: asyncio.Event) -> None:
            database = make_database(settings)
            try:
                if not await until_reachable(database, _require_current, stop):
                    return
            finally:
                database.dispose()
            app = make_admin(settings, tokens=tokens or {"admin": made or ""})
            await serve(app, sock=sock, stop=stop, started=started)

        run_until_stopped(main)


def _require_current(database: Database) -> None:
    from forebay.storage.schema import require_current

    require_current(database)
