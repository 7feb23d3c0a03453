"""`forebay consume`."""

from __future__ import annotations

import asyncio
import difflib
from pathlib import Path
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

if TYPE_CHECKING:
    from consumers.fleet import Fleet
    from forebay.settings import Settings


def consume(
    queues: Annotated[
        list[str] | None, typer.Argument(metavar="[QUEUE]...", help="Which queues; all if none is named.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where /livez, /readyz and /metrics listen; 127.0.0.1 by default."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Their port; they are off by default, 0 picks a free one.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = "info",
    verbose: VerboseOption = False,
) -> None:
    """
    Move messages from the queues to the database, or to your handlers.

    Examples:
      forebay consume
      forebay consume orders clicks
      forebay consume --port 9100

    Any number of these may run at once. While the database is away it stops pulling
    and waits, also at its start; a schema that is behind or ahead of this release
    ends it with exit code 3. Brokers in broker.drain are consumed too, until they are
    empty: docs/swapping-brokers.md. SIGTERM finishes the batch in hand and exits with 0.
    Handlers are found in the current folder and in the settings file's.
    """
    from forebay.cli._process import run_until_stopped, starting, until_reachable
    from forebay.cli.gateway import require_queues, where_messages_wait
    from forebay.settings import Flag
    from forebay.wiring import (
        broker_opener,
        find_handlers,
        make_database,
        make_fleet,
        serve_consumer_health,
    )

    log_to_stderr(log_level, verbose)
    flags = [
        Flag("consumer.health_host", "--host", host),
        Flag("consumer.health_port", "--port", port),
        Flag("broker.url", "--broker-url", broker_url),
        Flag("database.url", "--database-url", database_url),
    ]
    loaded = load(config, flags)
    settings = loaded.settings
    require_url(settings, "broker", "database")
    require_queues(settings)
    names = _chosen(settings, queues or [])
    find_handlers(*([loaded.file.resolve().parent] if loaded.file else []), Path.cwd())

    async def main(stop: asyncio.Event) -> None:
        from prometheus_client import CollectorRegistry

        from consumers.sinks.table import prepare_tables
        from forebay.storage.database import Database
        from forebay.storage.schema import require_current

        def check(database: Database) -> None:
            require_current(database)
            prepare_tables({name: settings.queue(name) for name in names}, database)

        registry = CollectorRegistry()
        database = make_database(settings)
        fleets: list[Fleet] = []
        # Before the database is asked: who waits for it is alive, and must not be restarted for that.
        health = serve_consumer_health(
            settings, lambda: [status for fleet in fleets for status in fleet.snapshot()], registry
        )
        try:
            async with health:
                if not await until_reachable(database, check, stop):
                    return
                async with broker_opener(settings.broker)() as broker:
                    fleet = make_fleet(settings, broker, database, registry=registry)
                    for name in names:
                        await broker.declare(name)
                        fleet.add(name, settings.queue(name))
                    fleets.append(fleet)
                    start.done()
                    note(f"consuming {', '.join(names)}; {where_messages_wait(settings)}")
                    await fleet.run(stop)
        finally:
            database.dispose()

    with starting("the consumer") as start:
        run_until_stopped(main)


def _chosen(settings: Settings, names: list[str]) -> list[str]:
    from forebay.errors import SettingsError

    for name in names:
        if name not in settings.queues:
            close = difflib.get_close_matches(name, settings.queues, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(settings.queues)}"
            raise SettingsError(f"queue {name!r} is not named in the settings{hint}")
    return list(dict.fromkeys(names)) or list(settings.queues)
