"""What many commands share: option types, loading settings, opening broker and database to read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import unquote

import typer

from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import note
from forebay.errors import SettingsError

if TYPE_CHECKING:
    from forebay.brokers.api import Broker
    from forebay.brokers.settings import BrokerSettings
    from forebay.settings import Flag, Loaded, Settings
    from forebay.storage.database import Database

T = TypeVar("T")

DEV_DATA = Path("forebay-data")
"""Where `forebay dev` keeps its queue and database unless told otherwise."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="The settings file; ./forebay.toml or $FOREBAY_CONFIG if not given.", metavar="FILE"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")]
LogLevelOption = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="The same as --log-level debug.")]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run an asynchronous body to its end."""
    return asyncio.run(main)


def log_to_stderr(level: str, verbose: bool = False) -> str:
    """
    Set up logging; return the level in force.

    Raises:
        SettingsError: there is no such level.
    """
    from forebay import telemetry

    level = "debug" if verbose else level.lower()
    if level not in telemetry.LEVELS:
        raise SettingsError(f"--log-level {level!r}: choose one of {', '.join(telemetry.LEVELS)}")
    telemetry.configure(level)
    return level


@contextmanager
def usable(next_step: str) -> Iterator[None]:
    """
    Turn an error with a file that was named on the command line into a usage error.

    Raises:
        CommandError: which file, why not, and `next_step`.
    """
    try:
        yield
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}; {next_step}", ExitCode.USAGE) from error


def load(
    config: Path | None, flags: Iterable[Flag] = (), *, fallbacks: dict[str, object] | None = None
) -> Loaded:
    """`forebay.settings.load`, imported only by the commands that need it."""
    from forebay.settings import load

    return load(config, flags, fallbacks=fallbacks)


def load_to_read(config: Path | None, flags: Iterable[Flag] = ()) -> Loaded:
    """
    The settings for a command that looks or repairs. Logs warnings to stderr.

    Without URLs it looks at what `forebay dev` left in ./forebay-data, if that is there.

    Raises:
        SettingsError: with all that is wrong.
    """
    log_to_stderr("warning")
    fallbacks = dev_urls(DEV_DATA) if (DEV_DATA / "queue.db").exists() else {}
    loaded = load(config, flags, fallbacks=fallbacks)
    missing = [name for name in fallbacks if loaded.provenance.get(name, "").startswith("default of")]
    if missing:
        are = "is not set" if len(missing) == 1 else "are not set"
        note(f"({' and '.join(missing)} {are}: looking at what `forebay dev` keeps in {DEV_DATA}/)")
    return loaded


def dev_urls(data: Path) -> dict[str, object]:
    """The URLs that `forebay dev` uses when no others are set."""
    return {
        "broker.url": f"sqlite:///{data / 'queue.db'}",
        "database.url": f"sqlite:///{data / 'forebay.db'}",
    }


_EXAMPLES = {
    "broker": ("--broker-url", "sqlite:////var/lib/forebay/queue.db"),
    "database": ("--database-url", "postgresql://forebay:password@localhost/forebay"),
}
_WHAT = {"broker": "where messages wait", "database": "where messages end up"}


def require_url(settings: Settings, *sections: str) -> None:
    """
    Return if these sections ("broker", "database") have a URL.

    Two processes that each fell back on a private default queue would be a black
    hole, so nothing but `forebay dev` has default URLs.

    Raises:
        SettingsError: with three lines to choose from.
    """
    missing = [section for section in sections if getattr(settings, section).url is None]
    if missing:
        raise _missing(*missing)


def _missing(*missing: str) -> SettingsError:
    names = " and ".join(f"{section}.url" for section in missing)
    variables = " ".join(f"FOREBAY_{section.upper()}__URL={_EXAMPLES[section][1]}" for section in missing)
    flags = " ".join(" ".join(_EXAMPLES[section]) for section in missing)
    toml = "\n  ".join(f'{section}.url = "{_EXAMPLES[section][1]}"' for section in missing)
    return SettingsError(
        f"{names} must be set: {' and '.join(_WHAT[section] for section in missing)}."
        " As variables, flags, or lines of forebay.toml:\n"
        f"  export {variables}\n"
        f"  {flags}\n"
        f"  {toml}\n"
        "To try Forebay without any set-up: forebay dev"
    )


BrokerUrlOption = Annotated[
    str | None, typer.Option("--broker-url", help="Where messages wait: broker.url.", metavar="URL")
]
DatabaseUrlOption = Annotated[
    str | None, typer.Option("--database-url", help="Where messages end up: database.url.", metavar="URL")
]


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """As `existing_database`, closed at the end."""
    database = existing_database(settings)
    try:
        yield database
    finally:
        database.dispose()


def existing_database(settings: Settings) -> Database:
    """
    The database, without ever creating one.

    Raises:
        SettingsError: no URL is set.
        CommandError: it is a SQLite file that does not exist.
    """
    from forebay.wiring import make_database

    require_url(settings, "database")
    file = sqlite_file(settings.database.url.get_secret_value() if settings.database.url else "")
    if file is not None and not file.exists():
        raise CommandError(
            f"there is no database {file} yet; `forebay migrate` (or `forebay dev`) creates it",
            ExitCode.DATABASE_UNREACHABLE,
        )
    return make_database(settings)


@asynccontextmanager
async def open_broker(settings: BrokerSettings) -> AsyncIterator[Broker]:
    """
    The broker, without ever creating a queue file.

    Raises:
        SettingsError: no URL is set.
        BrokerUnavailable: it cannot be reached.
        CommandError: it is an embedded queue that does not exist.
    """
    from forebay.brokers.factory import open_broker

    if settings.url is None:
        raise _missing("broker")
    file = sqlite_file(settings.url.get_secret_value())
    if file is not None and not file.exists():
        raise CommandError(
            f"there is no queue {file} yet; `forebay gateway` (or `forebay dev`) creates it",
            ExitCode.BROKER_UNREACHABLE,
        )
    async with open_broker(settings, create=False) as broker:
        yield broker


def sqlite_file(url: str) -> Path | None:
    """The file that a SQLite URL names; None for other URLs and databases in memory."""
    m = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", url)
    return None if m is None or m[1].startswith(":memory:") else Path(unquote(m[1]))


def unknown_sink(sink: str) -> str | None:
    """What is wrong with the name of a sink, without making one; None: nothing."""
    from consumers.sinks import known_sinks

    known = known_sinks()
    if sink in known:
        return None
    return f"sink {sink!r} is not installed; there are {', '.join(known)}"
