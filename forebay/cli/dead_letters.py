"""`forebay dead-letters list|show|export`: given-up messages, read."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import ConfigOption, DatabaseUrlOption, JsonOption, usable
from forebay.cli._dead_letters import (
    BeforeOption,
    Choice,
    ClassOption,
    GroupOption,
    IdOption,
    KeyOption,
    QueueOption,
    SinceOption,
    StatusOption,
    TextOption,
    checked_id,
    not_there,
    open_store,
    say_none,
    short,
    when,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, emit_table, note
from forebay.cli._settings import read_settings

if TYPE_CHECKING:
    from forebay.storage.dead_letters import DeadLetterRecord


def list_(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    key: KeyOption = None,
    text: TextOption = None,
    status: StatusOption = "dead",
    groups: Annotated[bool, typer.Option("--groups", help="One line per cause, with its count.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The latest so many.")] = 50,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    List given-up messages, the latest first, or one line per cause.

    Examples:
      forebay dead-letters list
      forebay dead-letters list --groups
      forebay dead-letters list --queue orders --since 2h --text customer-42

    A message that was just given up may still rest in its queue's dead-letter queue
    on the broker (`forebay queues`): the consumers bring it here.
    """
    choice = Choice(
        queue=queue, error_class=error_class, group=group, since=since, before=before, key=key, text=text
    )
    which = choice.filter(status)
    with open_store(read_settings(config, database_url=database_url)) as (_, store):
        if groups:
            found = store.groups(which)
            if as_json:
                emit_json([dataclasses.asdict(one) for one in found])
                return
            if not found:
                say_none(status)
                return
            emit_table(
                ("count", "group", "class", "destination", "first", "last", "sample", "reason"),
                [
                    (
                        g.count,
                        g.fingerprint,
                        g.error_class,
                        g.destination,
                        when(g.first_died_at),
                        when(g.last_died_at),
                        g.sample_id,
                        short(g.reason),
                    )
                    for g in found
                ],
            )
            return
        count = store.count(which)
        records = store.list(which, limit=limit, newest_first=True)
    if as_json:
        from forebay.dead_letters.records import as_json as shown

        emit_json([shown(record, body=False) for record in records])
        return
    if not records:
        say_none(status)
        return
    emit_table(
        ("id", "queue", "died", "attempts", "class", "status", "reason"),
        [
            (r.id, r.queue, when(r.died_at), r.attempts, r.error_class, r.status, short(r.reason))
            for r in records
        ],
    )
    if count > len(records):
        note(f"the latest {len(records)} of {count}; --limit shows more, --groups counts them by cause")


def show(
    id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    raw: Annotated[bool, typer.Option("--raw", help="Only the body, its exact bytes.")] = False,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Show one given-up message: why, where, when, each attempt, and its body.

    Examples:
      forebay dead-letters show 0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e
      forebay dead-letters show 0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e --raw > body.json
    """
    with open_store(read_settings(config, database_url=database_url)) as (_, store):
        records = store.get(checked_id(id))
    if not records:
        raise not_there(id)
    if raw:
        if len({record.body for record in records}) > 1:
            ids = ", ".join(record.id for record in records)
            raise CommandError(f"different bodies were sent under this id; choose one: {ids}", ExitCode.USAGE)
        sys.stdout.buffer.write(records[0].body)
        return
    if as_json:
        from forebay.dead_letters.records import as_json as shown

        emit_json([shown(record, body=True) for record in records])
        return
    for number, record in enumerate(records):
        if number:
            emit()
        _print(record)


def export(
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of standard output.")
    ] = None,
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    id: IdOption = None,
    key: KeyOption = None,
    text: TextOption = None,
    status: StatusOption = "all",
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
) -> None:
    """
    Write given-up messages as NDJSON, whole: one line each, the oldest first.

    Examples:
      forebay dead-letters export --queue orders > dead.ndjson
      forebay dead-letters export --status dead --since 1d --output dead.ndjson

    A body that is UTF-8 is in `body`, any other in `body_base64`: its exact bytes either way.
    A file is readable by its owner alone.
    """
    from forebay.dead_letters.records import export as lines

    choice = Choice(
        queue=queue, error_class=error_class, group=group, since=since, before=before, ids=id, key=key,
        text=text,
    )  # fmt: skip
    which = choice.filter(status)
    count = 0
    with open_store(read_settings(config, database_url=database_url)) as (_, store):
        if file is None:
            for line in lines(store, which):
                sys.stdout.buffer.write(line)
                count += 1
            sys.stdout.buffer.flush()
        else:
            with usable("name a new file, in a folder that may be written"):
                file.touch(mode=0o600, exist_ok=False)
                with file.open("wb") as out:
                    for line in lines(store, which):
                        out.write(line)
                        count += 1
    note(f"{count} written" + (f" to {file}" if file else ""))


def _print(record: DeadLetterRecord) -> None:
    from forebay.dead_letters.editing import readable

    rows = {
        "id": record.id,
        "sent with id": record.original_id,
        "status": record.status,
        "changed by": record.changed_by,
        "discarded for": record.discard_reason,
        "edited from": record.edited_from,
        "edited to": record.edited_to,
        "redrive job": record.redrive_job,
        "queue": record.queue,
        "destination": record.destination,
        "class": record.error_class,
        "reason": record.reason,
        "detail": record.detail or None,
        "attempts": record.attempts,
        "accepted": when(record.accepted_at),
        "died": when(record.died_at),
        "ordering key": record.key,
        "content type": record.content_type,
        "group": record.fingerprint,
    }
    for name, value in rows.items():
        if value is not None:
            emit(f"{name:<13} {value}")
    for attempt in record.history or ():
        emit(f"{'attempt':<13} {_attempt(attempt)}")
    for name, text in record.headers.items():
        emit(f"{'header':<13} {name}: {text}")
    emit(f"{'body':<13} {len(record.body)} bytes")
    emit()
    emit(readable(record.body))


def _attempt(attempt: dict[str, object]) -> str:
    """One line of the history; what a consumer of another release did not record is left out."""
    number, at, worker = (attempt.get(name) for name in ("number", "failed_at", "worker"))
    took = attempt.get("seconds")
    parts = [f"{number}", f"{at}", f"by {worker}" if worker else ""]
    parts += [f"after {took:.3f} s" if isinstance(took, (int, float)) else ""]
    parts += [": ".join(str(attempt[name]) for name in ("error_class", "reason") if attempt.get(name))]
    return "  ".join(part for part in parts if part)
