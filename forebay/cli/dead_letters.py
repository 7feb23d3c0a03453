"""`forebay dead-letters`: given-up messages listed, shown, sent back or let go."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DatabaseUrlOption,
    DryRunOption,
    JsonOption,
    YesOption,
    open_broker,
    open_database,
    run,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import confirm, emit, emit_json, emit_table, note, progress, warn
from forebay.cli._settings import read_settings
from forebay.cli._values import moment
from forebay.ids import canonical

if TYPE_CHECKING:
    from forebay.settings import Settings
    from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore

QueueOption = Annotated[str | None, typer.Option("--queue", help="Where they were given up.")]
ClassOption = Annotated[
    str | None, typer.Option("--error-class", help="As in the list: CheckViolation, expired, …")
]
GroupOption = Annotated[
    str | None, typer.Option("--group", metavar="FINGERPRINT", help="One group of `list --groups`.")
]
SinceOption = Annotated[
    datetime | None,
    typer.Option("--since", parser=moment, metavar="TIME", help="Died later: 2026-01-31T12:00, or 2h (ago)."),
]
BeforeOption = Annotated[
    datetime | None, typer.Option("--before", parser=moment, metavar="TIME", help="Died earlier.")
]
IdOption = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="Only these; may be repeated.")
]
StatusOption = Annotated[
    str, typer.Option("--status", help="dead, redriving, resolved, discarded; or all (list only).")
]

_STATUSES = ("dead", "redriving", "resolved", "discarded")


def list_(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
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
      forebay dead-letters list --queue orders --since 2h

    A message that was just given up may still rest in its queue's dead-letter queue
    on the broker (`forebay queues`): the consumers bring it here.
    """
    which = _filter(queue, error_class, group, since, before, None, status)
    with _store(read_settings(config, database_url=database_url)) as store:
        if groups:
            found = store.groups(which)
            if as_json:
                emit_json([dataclasses.asdict(one) for one in found])
                return
            if not found:
                _say_none(status)
                return
            emit_table(
                ("count", "group", "class", "destination", "first", "last", "reason"),
                [
                    (
                        g.count,
                        g.fingerprint,
                        g.error_class,
                        g.destination,
                        _when(g.first_died_at),
                        _when(g.last_died_at),
                        _short(g.reason),
                    )
                    for g in found
                ],
            )
            return
        count = store.count(which)
        records = store.list(which, limit=limit, newest_first=True)
    if as_json:
        emit_json([_as_json(record) for record in records])
        return
    if not records:
        _say_none(status)
        return
    emit_table(
        ("id", "queue", "died", "attempts", "class", "status", "reason"),
        [
            (r.id, r.queue, _when(r.died_at), r.attempts, r.error_class, r.status, _short(r.reason))
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
    Show one given-up message: why, where, when, and its body.

    Examples:
      forebay dead-letters show 0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e
      forebay dead-letters show 0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e --raw > body.json
    """
    with _store(read_settings(config, database_url=database_url)) as store:
        records = store.get(_checked(id))
    if not records:
        raise _not_there(id)
    if raw:
        if len({record.body for record in records}) > 1:
            ids = ", ".join(record.id for record in records)
            raise CommandError(f"different bodies were sent under this id; choose one: {ids}", ExitCode.USAGE)
        sys.stdout.buffer.write(records[0].body)
        return
    if as_json:
        emit_json([_as_json(record, body=True) for record in records])
        return
    for number, record in enumerate(records):
        if number:
            emit()
        _print(record)


def redrive(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    id: IdOption = None,
    status: StatusOption = "dead",
    everything: Annotated[bool, typer.Option("--all", help="Without any filter.")] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="Messages per second at most.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many, the oldest first.")
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Send given-up messages back to the queue where they were given up.

    Examples:
      forebay dead-letters redrive --queue orders --dry-run
      forebay dead-letters redrive --queue orders --limit 1 --yes
      forebay dead-letters redrive --group 3f2a9c81d04b7e65 --rate 100

    They keep their id and start again at attempt 1. One that arrives becomes `resolved`
    by itself. If this command was killed, a few stay `redriving` without having been sent:
    --status redriving sends them again, which harms none that were.
    """
    if status in ("all", "resolved"):
        raise CommandError(
            f"--status {status} is for list; redrive takes dead, redriving or discarded", ExitCode.USAGE
        )
    which = _filter(queue, error_class, group, since, before, id, status)
    _some_choice(everything, queue, error_class, group, since, before, id)
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    with _store(settings) as store:
        count = store.count(which)
        count = min(count, limit) if limit is not None else count
        _require_ids(store, which)
        _warn_of_conflicts(store, which)
        if dry_run or not count:
            text = f"{count} would be sent back" if count else "nothing to send back: no dead letter fits"
            _say(as_json, {"dry_run": dry_run, "count": count}, text)
            return
        confirm(f"Send {count} messages back to their queues?", yes=yes)
        sent, failed, why = run(_redrive(settings, store, which, count, rate))
    _say(as_json, {"dry_run": False, "sent": sent, "failed": failed}, f"{sent} sent back")
    if failed:
        raise CommandError(
            f"{failed} could not be sent and are dead as before ({why}); the same command sends the rest",
            ExitCode.PARTLY_FAILED if sent else ExitCode.FAILED,
        )


async def _redrive(
    settings: Settings, store: DeadLetterStore, which: DeadLetterFilter, count: int, rate: float | None
) -> tuple[int, int, str]:
    from forebay.cli._redrive import Redrive

    async with open_broker(settings.broker) as broker:
        with progress("sending back", count) as bar:
            work = Redrive(broker, store, rate=rate, progress=bar.advance)
            await work.run(which, limit=count)
    return work.sent, work.failed, work.why


def discard(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    id: IdOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Without any filter.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Give dead letters up for good.

    Examples:
      forebay dead-letters discard --group 3f2a9c81d04b7e65 --dry-run
      forebay dead-letters discard --queue clicks --before 30d --yes

    They stay readable (list --status discarded) until `forebay prune` deletes them.
    """
    from forebay.cli._redrive import pages

    which = _filter(queue, error_class, group, since, before, id, "dead")
    _some_choice(everything, queue, error_class, group, since, before, id)
    with _store(read_settings(config, database_url=database_url)) as store:
        count = store.count(which)
        _require_ids(store, which)
        if dry_run or not count:
            text = f"{count} would be discarded" if count else "nothing to discard: no dead letter fits"
            _say(as_json, {"dry_run": dry_run, "count": count}, text)
            return
        confirm(f"Discard {count} dead letters?", yes=yes)
        discarded = 0
        with progress("discarding", count) as bar:
            for records in pages(store, which, size=500, bodies=False):
                done = store.mark(records, status="discarded", expected="dead")
                discarded += done
                bar.advance(done)
    _say(as_json, {"dry_run": False, "discarded": discarded}, f"{discarded} discarded")


# ---- shared


@contextmanager
def _store(settings: Settings) -> Iterator[DeadLetterStore]:
    from forebay.storage.dead_letters import DeadLetterStore
    from forebay.storage.schema import require_current

    with open_database(settings) as database:
        require_current(database)
        yield DeadLetterStore(database)


def _filter(
    queue: str | None,
    error_class: str | None,
    group: str | None,
    since: datetime | None,
    before: datetime | None,
    ids: list[str] | None,
    status: str,
) -> DeadLetterFilter:
    from forebay.storage.dead_letters import DeadLetterFilter

    if status not in (*_STATUSES, "all"):
        raise CommandError(f"--status {status!r}: choose {', '.join(_STATUSES)} or all", ExitCode.USAGE)
    return DeadLetterFilter(
        queue=queue,
        status=None if status == "all" else status,  # type: ignore[arg-type]  # checked above
        error_class=error_class,
        fingerprint=group,
        ids=[_checked(id) for id in ids] if ids else None,
        died_after=since,
        died_before=before,
    )


def _checked(id: str) -> str:
    checked = canonical(id)
    if checked is None:
        raise CommandError(f"{id!r} is not a message id", ExitCode.USAGE)
    return checked


def _some_choice(everything: bool, *filters: object) -> None:
    if not everything and not any(filters):
        raise CommandError(
            "which ones? Choose by --queue, --group, --error-class, --since, --before or --id, or say --all",
            ExitCode.USAGE,
        )


def _require_ids(store: DeadLetterStore, which: DeadLetterFilter) -> None:
    """
    Return if every message that was named by --id is a dead letter, of whatever status.

    Nobody names an id without meaning that message: leaving one out silently would say it was done.

    Raises:
        CommandError
    """
    from forebay.storage.dead_letters import DeadLetterFilter

    for id in which.ids or ():
        if not store.count(DeadLetterFilter(ids=[id])):
            raise _not_there(id)


def _not_there(id: str) -> CommandError:
    return CommandError(
        f"no dead letter {id} in the database; where it is otherwise: forebay message {id}",
        ExitCode.NOT_FOUND,
    )


def _warn_of_conflicts(store: DeadLetterStore, which: DeadLetterFilter) -> None:
    if which.error_class not in (None, _CONFLICT):
        return
    conflicts = store.count(dataclasses.replace(which, error_class=_CONFLICT))
    if conflicts:
        warn(
            f"{conflicts} of them are other bodies under an idempotency key already used: sent back, each"
            " becomes a message of its own"
        )


_CONFLICT = "idempotency-conflict"


def _say_none(status: str) -> None:
    note("none" if status == "all" else f"none is {status}")


def _say(as_json: bool, value: dict[str, Any], text: str) -> None:
    if as_json:
        emit_json(value)
    else:
        emit(text)


def _as_json(record: DeadLetterRecord, *, body: bool = False) -> dict[str, Any]:
    value = dataclasses.asdict(record)
    del value["body"]
    if body:
        try:
            value["body"] = record.body.decode()
        except UnicodeDecodeError:
            value["body_hex"] = record.body.hex()
    else:
        del value["detail"]
    return value


def _print(record: DeadLetterRecord) -> None:
    rows = {
        "id": record.id,
        "sent with id": record.original_id,
        "status": record.status,
        "queue": record.queue,
        "destination": record.destination,
        "class": record.error_class,
        "reason": record.reason,
        "detail": record.detail or None,
        "attempts": record.attempts,
        "accepted": _when(record.accepted_at),
        "died": _when(record.died_at),
        "ordering key": record.key,
        "content type": record.content_type,
        "group": record.fingerprint,
    }
    for name, value in rows.items():
        if value is not None:
            emit(f"{name:<13} {value}")
    for name, text in record.headers.items():
        emit(f"{'header':<13} {name}: {text}")
    emit(f"{'body':<13} {len(record.body)} bytes")
    emit()
    emit(_readable(record.body))


def _readable(body: bytes) -> str:
    """The body for people: JSON indented, other text as it is, the rest as a hex dump of its beginning."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        lines = [body[i : i + 16].hex(" ") for i in range(0, min(len(body), 512), 16)]
        return "\n".join(lines + (["…"] if len(body) > 512 else []))


def _when(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%SZ")


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 90 else line[:89] + "…"
