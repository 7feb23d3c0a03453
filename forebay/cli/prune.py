"""`forebay prune`: delete old rows, in batches."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
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
    audit_older_than: Annotated[
        float | None,
        typer.Option(
            "--audit-older-than",
            parser=seconds_with_unit,
            metavar="DURATION",
            help="Also the audit log, and redrives that ended.",
        ),
    ] = None,
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
      forebay prune --older-than 90d --audit-older-than 365d --yes

    Without --older-than and --audit-older-than only dead letters that are resolved or
    discarded are deleted; open ones never are. An id that was deleted is new again: a
    producer that repeats an idempotency key after that gets a second message.
    """
    from forebay.storage.prune import prune
    from forebay.storage.schema import require_current

    with open_database(read_settings(config, database_url=database_url)) as database:
        require_current(database)
        pruned = partial(
            prune,
            database,
            older_than=older_than,
            resolved_older_than=resolved_older_than,
            audit_older_than=audit_older_than,
        )
        report = would = pruned(dry_run=True)
        if not dry_run and would.total:
            confirm(f"Delete {would.total} rows{_age(older_than)}?", yes=yes)
            with progress("deleting", would.total) as bar:
                report = pruned(dry_run=False, progress=bar.advance)
    if as_json:
        emit_json({"dry_run": dry_run, **asdict(report)})
        return
    done = "would be deleted" if dry_run else "deleted"
    counts = [
        f"{report.messages} messages",
        f"{report.dead_letters} dead letters",
        f"{report.processed_messages} once-only records",
    ]
    if audit_older_than is not None:
        counts += [f"{report.audit_log} audit entries", f"{report.redrive_jobs} redrives"]
    emit(f"{', '.join(counts[:-1])} and {counts[-1]} {done}")


def _age(older_than: float | None) -> str:
    return "" if older_than is None else f", among them messages older than {duration(older_than)}"
