"""`forebay dead-letters discard|edit`: given-up messages let go, or repaired and sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
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
    run,
    usable,
)
from forebay.cli._dead_letters import (
    AllOption,
    BeforeOption,
    Choice,
    ClassOption,
    GroupOption,
    IdOption,
    KeyOption,
    QueueOption,
    SinceOption,
    TextOption,
    checked_id,
    not_there,
    open_store,
    require_ids,
    say,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import confirm, emit, progress
from forebay.cli._settings import read_settings
from forebay.cli.controls import operator

if TYPE_CHECKING:
    from forebay.dead_letters.editing import Edit
    from forebay.settings import Settings
    from forebay.storage.database import Database


def discard(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    id: IdOption = None,
    key: KeyOption = None,
    text: TextOption = None,
    everything: AllOption = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with each of them.")] = "",
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
      forebay dead-letters discard --queue clicks --before 30d --reason "too old to matter" --yes

    They stay readable (list --status discarded) until `forebay prune` deletes them.
    """
    from forebay.dead_letters.discarding import discard as discard_all

    choice = Choice(
        queue=queue, error_class=error_class, group=group, since=since, before=before, ids=id, key=key,
        text=text, everything=everything,
    )  # fmt: skip
    which = choice.filter("dead")
    choice.require()
    with open_store(read_settings(config, database_url=database_url)) as (database, store):
        count = store.count(which)
        require_ids(store, which)
        if dry_run or not count:
            words = f"{count} would be discarded" if count else "nothing to discard: no dead letter fits"
            say(as_json, {"dry_run": dry_run, "count": count}, words)
            return
        confirm(f"Discard {count} dead letters?", yes=yes)
        with progress("discarding", count) as bar:
            discarded = discard_all(
                database, which, by=operator(), reason=reason, total=count, progress=bar.advance
            )
    say(as_json, {"dry_run": False, "discarded": discarded}, f"{discarded} discarded")


def edit(
    id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    body_file: Annotated[
        Path | None,
        typer.Option("--body-file", metavar="FILE", help="The whole new body; - is standard input."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="POINTER=VALUE", help="One value of a JSON body: /customer/id=42. Repeatable."
        ),
    ] = None,
    destination: Annotated[
        str | None, typer.Option("--destination", help="Where one id was given up by several.")
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Repair the body of one given-up message and send it, as a new message.

    Examples:
      forebay dead-letters edit ID --set /customer/id=42 --dry-run
      forebay dead-letters edit ID --set '/name="Ann"' --set /tags/-=late
      forebay dead-letters show ID --raw > body.json && vi body.json
      forebay dead-letters edit ID --body-file body.json

    A value is JSON; what is not is text. --dry-run shows what would change, line by line. The new
    message has a new id and goes to the queue that gave the old one up; the old one becomes
    `discarded`, with the new id as its reason, and each points to the other.
    """
    from forebay.dead_letters import editing

    if (body_file is None) == (not set_):
        raise CommandError("give either --body-file FILE or --set /pointer=value", ExitCode.USAGE)
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    with open_store(settings) as (database, store):
        id = checked_id(id)
        if not store.get(id):
            raise not_there(id)
        try:
            record = editing.one(database, id, destination)
            body = _read(body_file) if body_file else editing.with_values(record.body, _changes(set_ or []))
            planned = editing.plan(record, body)
        except editing.CannotEdit as error:
            raise CommandError(str(error), ExitCode.CONFLICT) from error
        value: dict[str, Any] = {"dry_run": dry_run, "id": record.id, "new_id": planned.new_id}
        if dry_run:
            say(as_json, value | {"diff": planned.diff}, planned.diff)
            return
        if not as_json:
            emit(planned.diff)
        confirm(f"Send this to {record.queue}, and discard the old one?", yes=yes)
        run(_send(settings, database, planned))
    say(as_json, value, f"sent to {record.queue} as {planned.new_id}; {record.id} is discarded")


async def _send(settings: Settings, database: Database, planned: Edit) -> None:
    from forebay.dead_letters import editing

    async with open_broker(settings.broker) as broker:
        try:
            await editing.send(database, broker, planned, by=operator())
        except editing.CannotEdit as error:
            raise CommandError(str(error), ExitCode.CONFLICT) from error


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    with usable("name a file that can be read"):
        return file.read_bytes()


def _changes(texts: list[str]) -> list[tuple[str, Any]]:
    found = []
    for text in texts:
        pointer, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--set {text!r} is not POINTER=VALUE, like /customer/id=42", ExitCode.USAGE)
        try:
            found.append((pointer, json.loads(value)))
        except ValueError:
            found.append((pointer, value))
    return found
