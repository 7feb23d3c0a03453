"""`forebay prune`: delete old rows, in batches."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.cli._common import (
    ConfigOption,
    DatabaseUrlOption,
    DryRunOption,
    JsonOption,
    YesOption,
    open_database,
)
from forebay.cli._output import confirm, duration, emit, emit_json, progress
from forebay.cli._settings import read_settings
from forebay.cli._values import seconds_with_unit


def prune(
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than",
            parser=seconds_with_unit,
            metavar="DURATION",
            help="Also messages and once-only records.",
        ),
    ] = None,
    resolved_older_than: Annotated[
        float,
        typer.Option(
            "--resolved-older-than",
            parser=seconds_with_unit,
            metavar="DURATION",
            show_default="30d",
            help="Dead letters resolved or discarded this long ago.",
        ),
    ] = 30 * 86_400.0,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Delete old rows, in batches small enough that nobody waits for them.

    Examples:
      forebay prune --dry-run
      forebay prune --older-than 90d --dry-run
      forebay prune --older-than 90d --yes

    Without --older-than only dead letters that are resolved or discarded are deleted;
    open ones never are. An id that was deleted is new again: a producer that repeats an
    idempotency key after that gets a second message.
    """
    from forebay.storage.prune import prune
    from forebay.storage.schema import require_current

    with open_database(read_settings(config, database_url=database_url)) as database:
        require_current(database)
        would = prune(database, older_than=older_than, resolved_older_than=resolved_older_than, dry_run=True)
        report = would
        if not dry_run and would.total:
            confirm(f"Delete {would.total} rows{_age(older_than)}?", yes=yes)
            with progress("deleting", would.total) as bar:
                report = prune(
                    database,
                    older_than=older_than,
                    resolved_older_than=resolved_older_than,
                    dry_run=False,
                    progress=bar.advance,
                )
    if as_json:
        emit_json(
            {
                "dry_run": dry_run,
                "messages": report.messages,
                "dead_letters": report.dead_letters,
                "processed_messages": report.processed_messages,
            }
        )
        return
    done = "would be deleted" if dry_run else "deleted"
    emit(
        f"{report.messages} messages, {report.dead_letters} dead letters and"
        f" {report.processed_messages} once-only records {done}"
    )


def _age(older_than: float | None) -> str:
    return "" if older_than is None else f", among them messages older than {duration(older_than)}"
