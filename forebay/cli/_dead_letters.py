"""What the commands on dead letters share: how some are chosen, opened and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli._common import open_database
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, note, warn
from forebay.cli._values import moment
from forebay.ids import canonical

if TYPE_CHECKING:
    from forebay.settings import Settings
    from forebay.storage.database import Database
    from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore

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
KeyOption = Annotated[str | None, typer.Option("--key", help="Their ordering key.")]
TextOption = Annotated[
    str | None, typer.Option("--text", help="In the reason, whatever its case, or in the body, exactly.")
]
StatusOption = Annotated[
    str, typer.Option("--status", help="dead, redriving, resolved, discarded; or all (list only).")
]
AllOption = Annotated[bool, typer.Option("--all", help="Without any filter.")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the filter options of one command said."""

    queue: str | None = None
    error_class: str | None = None
    group: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    ids: list[str] | None = None
    key: str | None = None
    text: str | None = None
    everything: bool = False

    @property
    def made(self) -> bool:
        return any(getattr(self, f.name) for f in dataclasses.fields(self))

    def require(self) -> None:
        """
        Return if some were chosen, or all of them in so many words.

        Raises:
            CommandError
        """
        if not self.made:
            raise CommandError(
                "which ones? Choose by --queue, --group, --error-class, --key, --text, --since, --before"
                " or --id, or say --all",
                ExitCode.USAGE,
            )

    def filter(self, status: str) -> DeadLetterFilter:
        """
        Raises:
            CommandError: there is no such status, or an id is none.
        """
        from forebay.storage.dead_letters import STATUSES, DeadLetterFilter

        if status not in (*STATUSES, "all"):
            raise CommandError(f"--status {status!r}: choose {', '.join(STATUSES)} or all", ExitCode.USAGE)
        return DeadLetterFilter(
            queue=self.queue,
            status=None if status == "all" else status,  # type: ignore[arg-type]  # checked above
            error_class=self.error_class,
            fingerprint=self.group,
            ids=[checked_id(id) for id in self.ids] if self.ids else None,
            died_after=self.since,
            died_before=self.before,
            key=self.key,
            text=self.text,
        )


@contextmanager
def open_store(settings: Settings) -> Iterator[tuple[Database, DeadLetterStore]]:
    from forebay.storage.dead_letters import DeadLetterStore
    from forebay.storage.schema import require_current

    with open_database(settings) as database:
        require_current(database)
        yield database, DeadLetterStore(database)


def checked_id(id: str) -> str:
    checked = canonical(id)
    if checked is None:
        raise CommandError(f"{id!r} is not an id", ExitCode.USAGE)
    return checked


def require_ids(store: DeadLetterStore, which: DeadLetterFilter) -> None:
    """
    Return if every message that was named by --id is a dead letter, of whatever status.

    Nobody names an id without meaning that message: leaving one out silently would say it was done.

    Raises:
        CommandError
    """
    from forebay.storage.dead_letters import DeadLetterFilter

    for id in which.ids or ():
        if not store.count(DeadLetterFilter(ids=[id])):
            raise not_there(id)


def not_there(id: str) -> CommandError:
    return CommandError(
        f"no dead letter {id} in the database; where it is otherwise: forebay message {id}",
        ExitCode.NOT_FOUND,
    )


def warn_of_conflicts(store: DeadLetterStore, which: DeadLetterFilter) -> None:
    if which.error_class not in (None, _CONFLICT):
        return
    conflicts = store.count(dataclasses.replace(which, error_class=_CONFLICT))
    if conflicts:
        warn(
            f"{conflicts} of them are other bodies under an idempotency key already used: sent back, each"
            " becomes a message of its own"
        )


_CONFLICT = "idempotency-conflict"


def say_none(status: str) -> None:
    note("none" if status == "all" else f"none is {status}")


def say(as_json: bool, value: dict[str, Any], text: str) -> None:
    if as_json:
        emit_json(value)
    else:
        emit(text)


def when(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 90 else line[:89] + "…"
