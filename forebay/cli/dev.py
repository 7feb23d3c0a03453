"""`forebay dev`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import (
    DEV_DATA,
    ConfigOption,
    LogLevelOption,
    VerboseOption,
    dev_urls,
    load,
    log_to_stderr,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli.gateway import HostOption, InsecureOption, PortOption, url_of
from forebay.section import Password

if TYPE_CHECKING:
    from forebay.settings import Flag, Loaded


def dev(
    host: HostOption = None,
    port: PortOption = None,
    data: Annotated[
        Path, typer.Option("--data", help="Where queue and database are kept.", metavar="DIR")
    ] = DEV_DATA,
    handler: Annotated[
        list[str] | None,
        typer.Option(
            "--handler",
            metavar="QUEUE=FUNCTION",
            help="Your function for a queue: orders=shop.orders:handle. Repeatable.",
        ),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a Python file or the settings file changes.")
    ] = False,
    insecure_no_auth: InsecureOption = False,
    listen_fd: Annotated[int | None, typer.Option("--listen-fd", hidden=True)] = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = "info",
    verbose: VerboseOption = False,
) -> None:
    """
    Run gateway and consumer in one process, with nothing to set up.

    Examples:
      forebay dev
      forebay dev --port 9000 --data /tmp/try
      forebay dev --handler orders=shop.orders:handle --reload

    Messages wait in DIR/queue.db and end up in DIR/forebay.db, unless the settings
    name other URLs. Tables are created by themselves and a queue exists from its
    first message on. What is in the queue outlives the process. The admin API is served
    on port 8081 or the next that is free. Ctrl-C drains; a second Ctrl-C does not. For
    one machine: in production run `forebay gateway` and `forebay consume`.
    """
    from forebay.settings import Flag

    log_to_stderr(log_level, verbose)
    flags = [
        Flag("gateway.host", "--host", host),
        Flag("gateway.port", "--port", port),
        Flag("gateway.insecure_no_auth", "--insecure-no-auth", insecure_no_auth or None),
    ]
    flags += _handler_flags(handler or [])
    loaded = load(config, flags, fallbacks=dev_urls(data))
    if reload:
        from forebay.cli._reload import run_and_reload

        with _listening(loaded, listen_fd) as sock:
            run_and_reload(sock, watch=loaded.file)
        return
    with _data_folder(loaded, data), _listening(loaded, listen_fd) as sock:
        _run(loaded, sock, data, leash=None if listen_fd is None else 0)


def _handler_flags(handlers: list[str]) -> list[Flag]:
    from forebay.errors import SettingsError
    from forebay.settings import Flag

    flags = []
    for text in handlers:
        queue, equals, function = text.partition("=")
        if not equals:
            raise SettingsError(
                f"--handler {text!r} is not QUEUE=MODULE:FUNCTION, like orders=shop.orders:handle"
            )
        flags.append(Flag(f"queues.{queue}.handler", "--handler", function))
        # Also where the settings file says otherwise: the flag is how a handler is tried.
        flags.append(Flag(f"queues.{queue}.sink", "--handler", "python"))
    return flags


@contextmanager
def _data_folder(loaded: Loaded, data: Path) -> Iterator[None]:
    """Make the folder and keep a second `forebay dev` out of it while we run."""
    ours = [name for name in dev_urls(data) if loaded.provenance[name].startswith("default of")]
    if not ours:
        yield
        return
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(
            f"{error.filename}: {error.strerror}; choose another place with --data DIR",
            ExitCode.STARTUP_FAILED,
        ) from error
    with os.fdopen(fd, "r+") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = file.read().strip() or "unknown"
            raise CommandError(
                f"another `forebay dev` (process {other}) works in {data}/; stop it, or give this one"
                " its own folder and port: forebay dev --data DIR --port PORT",
                ExitCode.STARTUP_FAILED,
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _listening(loaded: Loaded, fd: int | None) -> Iterator[socket.socket]:
    """The socket to serve: a new one, or that of the process that restarts us."""
    from forebay.cli._process import starting

    with starting("forebay dev"):
        if fd is None:
            from gateway.server import bind

            sock = bind(loaded.settings.gateway)
        else:
            sock = socket.socket(fileno=fd)
    with sock:
        yield sock


def _run(loaded: Loaded, sock: socket.socket, data: Path, *, leash: int | None) -> None:
    from forebay.cli._dev_admin import bind_near, token_in
    from forebay.cli._process import run_until_stopped, starting, until_reachable
    from forebay.wiring import (
        broker_opener,
        find_handlers,
        make_admin,
        make_database,
        make_fleet,
        make_gateway,
        shared,
        start_telemetry,
    )

    settings = loaded.settings
    find_handlers(*([loaded.file.resolve().parent] if loaded.file else []), Path.cwd())

    tokens, token_file = settings.admin.named(), None
    if not tokens:
        token, token_file = token_in(data)
        tokens = {"admin": token}
        settings = settings.model_copy(
            update={"admin": settings.admin.model_copy(update={"token": Password(token)})}
        )

    def started() -> None:
        start.done()
        _welcome(loaded, sock, admin_sock, token_file)

    async def main(stop: asyncio.Event) -> None:
        from consumers.sinks.table import prepare_tables
        from forebay.admin.server import serve as serve_admin
        from forebay.storage.database import Database
        from forebay.storage.schema import migrate
        from gateway.server import serve

        def prepare(database: Database) -> None:
            migrate(database)
            prepare_tables(settings.queues, database)

        registry = start_telemetry("forebay")
        database = make_database(settings)
        try:
            if not await until_reachable(database, prepare, stop):
                return
            async with broker_opener(settings.broker)() as broker:
                consumers = make_fleet(settings, broker, database, registry=registry)
                for name in settings.queues:
                    await broker.declare(name)
                    consumers.add(name, settings.queue(name))
                app = make_gateway(
                    settings,
                    broker=shared(broker),
                    on_declared=lambda name: consumers.add(name, settings.queue(name)),
                    registry=registry,
                )
                drained = asyncio.Event()
                admin = make_admin(settings, tokens=tokens, broker=shared(broker))
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(consumers.run(drained))
                    tasks.create_task(serve_admin(admin, sock=admin_sock, stop=stop))
                    try:
                        # The gateway first: what it still accepts, the consumers still take.
                        await serve(
                            app,
                            settings.gateway,
                            sock=sock,
                            stop=stop,
                            started=started,
                        )
                    finally:
                        drained.set()
        finally:
            database.dispose()

    with starting("forebay dev") as start, bind_near(settings.admin) as admin_sock:
        run_until_stopped(main, leash=leash)


def _welcome(loaded: Loaded, sock: socket.socket, admin: socket.socket, token: Path | None) -> None:
    from forebay.settings_schema import shown

    settings = loaded.settings
    url = url_of(settings.gateway.host, sock, tls=settings.gateway.tls_cert is not None)
    queue = next(iter(settings.queues), "orders")
    here = f"{Path.cwd()}/"
    print(
        f"\nForebay is ready on {url}\n"
        f"  its pages           {url}/docs   {url}/readyz   {url}/metrics\n"
        f"  messages wait in    {str(shown(settings.broker.url)).replace(here, '')}\n"
        f"  and are stored in   {str(shown(settings.database.url)).replace(here, '')}\n"
        f"  operators' API      {url_of(settings.admin.host, admin)}/admin/v1/"
        f" with the token {f'in {token}' if token else 'of your settings'}\n"
        "Post one:\n"
        f"  curl -i {url}/v1/queues/{queue}/messages -H 'Content-Type: application/json' -d '{{\"id\": 1}}'\n"
        "Ctrl-C stops it; nothing accepted is lost.\n"
        "This is for one machine; production runs `forebay gateway` and `forebay consume`.\n",
        flush=True,
    )
