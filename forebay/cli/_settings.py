"""Settings for the commands that look and repair, with the URLs that were given as flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay.settings import Loaded, Settings


def read_settings(
    config: Path | None, *, broker_url: str | None = None, database_url: str | None = None
) -> Settings:
    """
    What `forebay.cli._common.load_to_read` finds; a URL that is given wins over every other source.

    Raises:
        SettingsError: with all that is wrong.
    """
    return read_loaded(config, broker_url=broker_url, database_url=database_url).settings


def read_loaded(
    config: Path | None, *, broker_url: str | None = None, database_url: str | None = None
) -> Loaded:
    """As `read_settings`, with the origin of each value."""
    from forebay.cli._common import load_to_read
    from forebay.settings import Flag

    flags = [
        Flag("broker.url", "--broker-url", broker_url),
        Flag("database.url", "--database-url", database_url),
    ]
    return load_to_read(config, flags)
