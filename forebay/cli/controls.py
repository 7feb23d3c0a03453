"""`forebay pause`, `resume` and `throttle`: what all consumers of a queue do, from now on."""

from __future__ import annotations

import dataclasses
import difflib
import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import ConfigOption, DatabaseUrlOption, JsonOption, open_database
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, note
from forebay.cli._settings import read_settings

if TYPE_CHECKING:
    from forebay.settings import Settings
    from forebay.storage.controls import Control
    from forebay.storage.database import Database

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", show_default=False)]
FORGET = ("off", "none")
SOON = "every consumer obeys within 2 seconds"


def pause(
    queue: QueueArgument,
    reason: Annotated[
        str, typer.Option("--reason", help="Shown wherever somebody asks why nothing moves.")
    ] = "",
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Have all consumers stop taking from a queue.

    Examples:
      forebay pause orders
      forebay pause orders --reason "the warehouse is being moved"

    Messages are still accepted, and wait. What is in hand is finished or handed back, and no
    attempt is counted. Consumers obey within 2 seconds, those that start later too, until
    `forebay resume`; also while the database is away, and after restarts.
    """
    from forebay.storage import controls

    with _database(read_settings(config, database_url=database_url), queue) as database:
        control = controls.pause(database, queue, reason=reason, by=operator())
    _say(control, as_json, f"{queue} is paused: {SOON}. To go on: forebay resume {queue}")


def resume(
    queue: QueueArgument,
    allow: Annotated[
        int | None,
        typer.Option(
            "--allow-dead-letters",
            min=1,
            metavar="COUNT",
            help="So many more may be given up before it counts as suspicious again, by each consumer.",
        ),
    ] = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Have all consumers go on with a queue, whoever paused it.

    Examples:
      forebay resume orders
      forebay resume orders --allow-dead-letters 5000

    Also for a queue that paused itself because too many of its messages were given up
    (`suspicious failure rate`). Repair first what `forebay dead-letters list --groups` shows.
    """  # fmt: skip
    from forebay.storage import controls

    with _database(read_settings(config, database_url=database_url), queue) as database:
        before = controls.read(database).get(queue)
        control = controls.resume(database, queue, by=operator(), allowance=allow)
    if before is None or not before.paused:
        note(f"{queue} was not paused; its consumers begin a new count of dead letters")
    _say(control, as_json, f"{queue} goes on: {SOON}")


def throttle(
    queue: QueueArgument,
    rate: Annotated[
        str, typer.Argument(metavar="RATE", help="Messages per second, or `off`.", show_default=False)
    ],
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Have each consumer process take at most so many messages per second from a queue.

    Examples:
      forebay throttle orders 50
      forebay throttle orders 0.5
      forebay throttle orders off

    It goes before the queue's `rate` in the settings; `off` makes that one hold again. The
    rate is per consumer process: with three replicas at 50 the destination sees 150.
    """
    from forebay.storage import controls

    value = _rate(rate)
    with _database(read_settings(config, database_url=database_url), queue) as database:
        control = controls.throttle(database, queue, rate=value, by=operator())
    text = "as the settings say" if value is None else f"at most {value:g} messages per second and process"
    _say(control, as_json, f"{queue}: {text}; {SOON}")


def operator() -> str:
    """Who is acting, for those who read later what was done: $FOREBAY_OPERATOR, or login@host."""
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        login = f"uid {os.getuid()}"
    return os.environ.get("FOREBAY_OPERATOR") or f"{login}@{socket.gethostname()}"


def _rate(text: str) -> float | None:
    if text.lower() in FORGET:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise CommandError(
            f"{text!r} is not a rate; write messages per second like 50 or 0.5, or `off`."
            " To stop a queue: forebay pause QUEUE",
            ExitCode.USAGE,
        )
    return value


@contextmanager
def _database(settings: Settings, queue: str) -> Iterator[Database]:
    from forebay.storage.schema import require_current

    with open_database(settings) as database:
        require_current(database)
        _require_known(database, settings, queue)
        yield database


def _require_known(database: Database, settings: Settings, queue: str) -> None:
    """
    A mistyped name must not look like a queue that is paused now.

    Raises:
        CommandError: neither the settings nor any consumer, now or before, knows the queue.
    """
    from forebay.storage import controls
    from forebay.storage.reports import reported_queues

    known = {*settings.queues, *reported_queues(database), *controls.read(database)}
    if queue in known or not known:
        return
    close = difflib.get_close_matches(queue, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
    raise CommandError(f"no consumer knows a queue {queue!r}; {hint}", ExitCode.NOT_FOUND)


def _say(control: Control, as_json: bool, text: str) -> None:
    if as_json:
        emit_json(dataclasses.asdict(control))
    else:
        emit(text)
