"""What many commands share: option types, loading settings, opening broker and database to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from forebay.cli._exit import CommandError, ExitCode

if TYPE_CHECKING:
    from forebay.brokers.api import Broker
    from forebay.settings import Settings
    from forebay.storage.database import Database

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="The settings file; ./forebay.toml or $FOREBAY_CONFIG if not given.", metavar="FILE"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run an asynchronous body to its end."""
    return asyncio.run(main)


def load_settings(config: Path | None) -> Settings:
    """
    The settings for a command that looks or repairs. Logs warnings to stderr.

    Without URLs it looks at what `forebay dev` left in ./forebay-data, if that is there.

    Raises:
        SettingsError: with all that is wrong.
    """
    raise NotImplementedError


def open_database(settings: Settings) -> Database:
    """
    The database, without ever creating one; `.dispose()` it at the end.

    Raises:
        SettingsError: no URL is set.
        CommandError: it is a SQLite file that does not exist.
    """
    raise NotImplementedError


@asynccontextmanager
async def open_broker(settings: Settings) -> AsyncIterator[Broker]:
    """
    The broker, without ever creating a queue file.

    Raises:
        SettingsError: no URL is set.
        BrokerUnavailable: it cannot be reached.
        CommandError: it is an embedded queue that does not exist.
    """
    raise CommandError("", ExitCode.FAILED)
    yield
