"""`forebay consume`."""

from __future__ import annotations

import asyncio
import difflib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay import collector
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
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import note
from forebay.cli._values import seconds

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
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when the queues are empty: for cron, for a batch job.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=seconds,
            metavar="DURATION",
            help="With --until-empty: end after this long all the same.",
        ),
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
      forebay consume --until-empty --timeout 30m orders

    Any number of these may run at once. While the database is away it stops pulling
    and waits, also at its start; a schema that is behind or ahead of this release
    ends it with exit code 3. Brokers in broker.drain are consumed too, until they are
    empty: docs/swapping-brokers.md. SIGTERM finishes the batch in hand and exits with 0.
    Handlers are found in the current folder and in the settings file's.

    With --until-empty it ends when nothing waits in the queues and no consumer has
    anything in hand, on every broker that it reads. Messages that wait for their time
    are left for the next run, but for those that failed in this run and are due again
    within a minute. Any number may run side by side: each ends when all is done.

    Exit codes with --until-empty: 0 empty and all is stored; 8 empty, but messages became
    dead letters in this run or are left to be tried again later. When --timeout is over:
    6 the broker, 7 the database or another destination cannot be reached or refuses; 1 the
    queues still hold messages, or are paused. 130 stopped by a signal before that.
    """
    from forebay.cli._process import run_until_stopped, starting, until_reachable
    from forebay.cli._until_empty import Deadline, conclude
    from forebay.cli.gateway import require_queues, where_messages_wait
    from forebay.settings import Flag
    from forebay.stopping import cut_short_by
    from forebay.wiring import (
        broker_opener,
        find_handlers,
        make_database,
        make_fleet,
        safe_url,
        serve_consumer_health,
        start_telemetry,
    )

    log_to_stderr(log_level, verbose)
    if timeout is not None and not until_empty:
        raise CommandError(
            "--timeout ends a run with --until-empty; `forebay consume` runs until stopped", ExitCode.USAGE
        )
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
        from consumers.sinks.table import prepare_tables
        from forebay.storage.database import Database
        from forebay.storage.schema import require_current

        def check(database: Database) -> None:
            require_current(database)
            prepare_tables({name: settings.queue(name) for name in names}, database)

        registry = start_telemetry("forebay-consumer")
        database = make_database(settings)
        fleets: list[Fleet] = []
        deadline = Deadline(stop, timeout)
        # Before the database is asked: who waits for it is alive, and must not be restarted for that.
        health = serve_consumer_health(
            settings, lambda: [status for fleet in fleets for status in fleet.snapshot()], registry
        )
        try:
            async with health, deadline, AsyncExitStack() as stack:
                if not await until_reachable(database, check, stop):
                    if deadline.over:
                        raise deadline.failure(
                            f"{database.safe_url} cannot be reached", ExitCode.DATABASE_UNREACHABLE
                        )
                    return
                try:
                    async with cut_short_by(stop):
                        broker = await stack.enter_async_context(broker_opener(settings.broker)())
                except TimeoutError:
                    if deadline.over:
                        raise deadline.failure(
                            f"{safe_url(settings.broker)} cannot be reached", ExitCode.BROKER_UNREACHABLE
                        ) from None
                    if stop.is_set():
                        return
                    raise
                fleet = make_fleet(settings, broker, database, registry=registry)
                for name in names:
                    await broker.declare(name)
                    fleet.add(name, settings.queue(name))
                fleets.append(fleet)
                start.done()
                note(f"consuming {', '.join(names)}; {where_messages_wait(settings)}")
                collector.spare()
                await fleet.run(stop, until_empty=until_empty)
                if until_empty:
                    conclude(fleet, deadline)
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
