"""`forebay audit`: who did what."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated

import typer

from forebay.cli._common import ConfigOption, DatabaseUrlOption, JsonOption
from forebay.cli._dead_letters import open_store, when
from forebay.cli._output import emit_json, emit_table, note
from forebay.cli._settings import read_settings
from forebay.cli._values import moment


def audit(
    who: Annotated[str | None, typer.Option("--who", help="Only what this operator or token did.")] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only these: redrive, discard, edit, pause, resume, …")
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="Only what was about this queue.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", parser=moment, metavar="TIME", help="Later: 2026-01-31T12:00, or 2h (ago)."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The latest so many.")] = 50,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    List what operators did, the latest first: who, when, to what, to how many.

    Examples:
      forebay audit
      forebay audit --queue orders --since 1d

    Redrives, edits, discards, pauses, resumes and throttles are in it, from the command line
    and the admin API. At the command line one is called $FOREBAY_OPERATOR, or login@host.
    """
    from forebay.storage.audit import entries

    with open_store(read_settings(config, database_url=database_url)) as (database, _):
        found = entries(database, limit=limit, who=who, action=action, queue=queue, since=since)
    if as_json:
        emit_json([dataclasses.asdict(entry) for entry in found])
        return
    if not found:
        note("nothing was done yet")
        return
    emit_table(
        ("at", "who", "action", "queue", "count", "which", "detail"),
        [
            (
                when(e.at), e.who, e.action, e.queue, e.count,
                ", ".join(f"{name} {value}" for name, value in (e.selection or {}).items()) or None,
                e.detail or None,
            )
            for e in found
        ],
    )  # fmt: skip
