"""`forebay gateway`."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Annotated

import structlog
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
from forebay.cli._output import note

if TYPE_CHECKING:
    from forebay.settings import Settings

HostOption = Annotated[str | None, typer.Option("--host", help="Where to listen; 127.0.0.1 by default.")]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Where to listen; 8080 by default, 0 picks a free port.")
]

InsecureOption = Annotated[
    bool, typer.Option("--insecure-no-auth", help="Listen beyond loopback without authentication.")
]


def gateway(
    host: HostOption = None,
    port: PortOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that share the port; 1 by default.")
    ] = None,
    insecure_no_auth: InsecureOption = False,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = "info",
    verbose: VerboseOption = False,
) -> None:
    """
    Accept messages over HTTP and store them in the queue.

    Examples:
      forebay gateway --broker-url sqlite:////var/lib/forebay/queue.db
      forebay gateway --host 0.0.0.0 --insecure-no-auth --workers 2

    It needs the broker's URL and at least one queue. With the database's URL it also
    answers GET /v1/messages/{id}; a dead database stops nothing else. SIGTERM drains
    and exits with 0. A broker elsewhere that is not there yet is waited for; an
    embedded queue that cannot be opened ends it with exit code 3. With gateway.journal or
    broker.fallback it serves without its broker; a stop that leaves messages in a journal
    which no other gateway can adopt exits with 9.
    """
    from forebay.cli._process import run_until_stopped, starting
    from forebay.settings import Flag
    from forebay.wiring import make_gateway, make_schemas, start_telemetry, to_environment

    level = log_to_stderr(log_level, verbose)
    flags = [
        Flag("gateway.host", "--host", host),
        Flag("gateway.port", "--port", port),
        Flag("gateway.workers", "--workers", workers),
        Flag("gateway.insecure_no_auth", "--insecure-no-auth", insecure_no_auth or None),
        Flag("broker.url", "--broker-url", broker_url),
        Flag("database.url", "--database-url", database_url),
    ]
    loaded = load(config, flags)
    settings = loaded.settings
    require_url(settings, "broker")
    require_queues(settings)

    with starting("the gateway") as start:
        from gateway.server import bind, serve

        make_schemas(settings)  # a broken one is told before anything listens or any worker starts
        sock = bind(settings.gateway)
        url = url_of(settings.gateway.host, sock, tls=settings.gateway.tls_cert is not None)
        if settings.gateway.workers > 1:
            from gateway.workers import run_workers

            to_environment(flags, loaded.file, level)
            note(f"{url} with {settings.gateway.workers} workers; {where_messages_wait(settings)}")
            code = run_workers("forebay.wiring:gateway_app", settings.gateway, sock)
            if code == 0:
                structlog.get_logger().info("stopped")
                require_drained(settings)
            raise typer.Exit(code)

        def started() -> None:
            start.done()
            note(f"{url} is ready; {where_messages_wait(settings)}")

        async def main(stop: asyncio.Event) -> None:
            app = make_gateway(settings, registry=start_telemetry("forebay-gateway"))
            collector.spare()
            await serve(app, settings.gateway, sock=sock, stop=stop, started=started)

        run_until_stopped(main)
    require_drained(settings)


def require_drained(settings: Settings) -> None:
    """
    Return if no journal is left alone, after a stop.

    Raises:
        CommandError: with exit code 9, what is left and what to do with it.
    """
    if settings.gateway.journal is None:
        return
    from forebay.cli._exit import CommandError, ExitCode
    from forebay.journal.looking import left_alone
    from forebay.wiring import journal_opener

    left = asyncio.run(left_alone(settings.gateway.journal, journal_opener(settings)))
    if left:
        raise CommandError(
            f"stopped with {left} messages in the journal {settings.gateway.journal}, and no other gateway"
            " is there to adopt them; start one on that directory again, or run `forebay journal drain`",
            ExitCode.JOURNAL_UNDRAINED,
        )


def require_queues(settings: Settings) -> None:
    """
    Return if at least one queue is named.

    Raises:
        SettingsError: with three lines to choose from.
    """
    from forebay.errors import SettingsError

    if not settings.queues:
        raise SettingsError(
            "no queue is named, so nothing could be accepted. Any one of these names one:\n"
            "  export FOREBAY_QUEUE_NAMES=orders\n"
            '  queue_names = "orders"          # in forebay.toml\n'
            "  [queues.orders]                 # in forebay.toml, with the queue's own settings below"
        )


def where_messages_wait(settings: Settings) -> str:
    """The broker in use, without credentials, so that a mistyped URL is seen at the start."""
    from forebay.settings_schema import shown

    return f"messages wait in {shown(settings.broker.url)}"


def url_of(host: str, sock: socket.socket, *, tls: bool = False) -> str:
    """Where `sock` answers, with the real port and the brackets that an IPv6 address needs."""
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
