"""`forebay message`: where one message is."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from forebay.cli._common import ConfigOption, DatabaseUrlOption, JsonOption, open_database
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json
from forebay.cli._settings import read_settings
from forebay.ids import canonical


def message(
    id: Annotated[str, typer.Argument(metavar="ID", help="As the gateway answered it.", show_default=False)],
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Where one message is now, as far as the database knows.

    Examples:
      forebay message 0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e

    Exit codes: 0 found, 4 the database has not seen it: it still waits in its queue, or
    was never accepted.
    """
    from forebay.storage.states import message_status

    if canonical(id) is None:
        raise CommandError(f"{id!r} is not a message id; they look like {_EXAMPLE}", ExitCode.USAGE)
    with open_database(read_settings(config, database_url=database_url)) as database:
        status = message_status(database, id)
    if status is None:
        raise CommandError(
            f"the database has not seen message {id}. Either it still waits in its queue (see how much"
            " does: forebay queues), or no gateway of this installation ever accepted it",
            ExitCode.NOT_FOUND,
        )
    known = {name: value for name, value in dataclasses.asdict(status).items() if value is not None}
    if as_json:
        emit_json(known)
    else:
        _print(known)


_EXAMPLE = "0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e"

_WORDS = {
    "stored": "stored in the database",
    "done": "done: handled, or stored and pruned since",
    "dead": "dead: given up; send it back with: forebay dead-letters redrive --id {id}",
    "discarded": "discarded by an operator",
    "waiting": "on its way from the dead letters back to its queue",
}


def _print(known: dict[str, Any]) -> None:
    emit(f"{known['id']} is {_WORDS[known['state']].format(**known)}")
    for name, value in known.items():
        if name in ("id", "state", "timeline", "digest"):
            continue
        if name == "answer":
            body = "" if value["complete"] else ", whose body is not kept"
            value = f"{value['status']}{body}; GET /v1/messages/{known['id']}/answer"
        if name == "conflicts":
            value = ", ".join(value) + "  (other bodies that came under this id)"
        if name == "stored_at" and known["state"] == "done":
            name = "handled_at"
        emit(f"{name.replace('_', ' '):<12} {value}")
    for event in known["timeline"]:
        words = [event["state"], *(f"{n} {event[n]}" for n in ("attempt", "destination") if event[n])]
        why = f": {event['reason']}" if event["reason"] else ""
        emit(f"{event['at']:%Y-%m-%d %H:%M:%S}  {' '.join(words)}{why}")
