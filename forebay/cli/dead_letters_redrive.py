"""`forebay dead-letters redrive|jobs`: given-up messages sent back, as a job that can be gone on with."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    StatusOption,
    TextOption,
    checked_id,
    open_store,
    require_ids,
    say,
    warn_of_conflicts,
    when,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import confirm, emit, emit_json, emit_table, note, progress
from forebay.cli._settings import read_settings
from forebay.cli._values import seconds
from forebay.cli.controls import operator

if TYPE_CHECKING:
    from forebay.settings import Settings
    from forebay.storage.database import Database
    from forebay.storage.redrive_jobs import Job


def redrive(
    queue: QueueOption = None,
    error_class: ClassOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    before: BeforeOption = None,
    id: IdOption = None,
    key: KeyOption = None,
    text: TextOption = None,
    status: StatusOption = "dead",
    everything: AllOption = False,
    canary: Annotated[
        bool,
        typer.Option("--canary/--no-canary", help="1, then 10, then 100, then the rest, looking in between."),
    ] = True,
    wait: Annotated[
        float,
        typer.Option("--wait", parser=seconds, metavar="TIME", help="For what a stage sent, at most."),
    ] = 60.0,
    max_died: Annotated[
        float, typer.Option("--max-died", min=0, max=100, help="Per cent of a stage; above it, stop.")
    ] = 10.0,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="Messages per second at most.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many, the oldest first.")
    ] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="JOB", help="Go on with a job.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="JOB", help="End a job.")] = None,
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
      forebay dead-letters redrive --group 3f2a9c81d04b7e65 --rate 100
      forebay dead-letters redrive --all --no-canary --yes
      forebay dead-letters redrive --resume 019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11

    They keep their id and start again at attempt 1. One that arrives becomes `resolved`
    by itself. One goes first, then 10, then 100, then the rest; after each stage it is
    awaited whether they arrive. It stops by itself when the first dies again, or later
    more than --max-died of a stage. Ctrl-C pauses it. Killed at any point it can be
    gone on with by --resume: nothing is lost, and nothing takes effect twice.
    """
    choice = Choice(
        queue=queue, error_class=error_class, group=group, since=since, before=before, ids=id, key=key,
        text=text, everything=everything,
    )  # fmt: skip
    settings_of = {"broker_url": broker_url, "database_url": database_url}
    if resume or stop:
        if choice.made or (resume and stop):
            raise CommandError("--resume and --stop take a job, and no choice beside it", ExitCode.USAGE)
        settings = read_settings(config, **settings_of)
        with open_store(settings) as (database, _):
            if stop:
                _stop(database, checked_id(stop), as_json)
            else:
                _resume(settings, database, checked_id(resume or ""), as_json)
        return
    if status in ("all", "resolved"):
        raise CommandError(
            f"--status {status} is for list; redrive takes dead, redriving or discarded", ExitCode.USAGE
        )
    which = choice.filter(status)
    choice.require()
    settings = read_settings(config, **settings_of)
    with open_store(settings) as (database, store):
        from forebay.dead_letters.redrive import Options, count, create

        number = count(database, which, limit)
        require_ids(store, which)
        warn_of_conflicts(store, which)
        if dry_run or not number:
            words = f"{number} would be sent back" if number else "nothing to send back: no dead letter fits"
            say(as_json, {"dry_run": dry_run, "count": number}, words)
            return
        confirm(f"Send {number} messages back to their queues?", yes=yes)
        options = Options(canary=canary, rate=rate, limit=limit, max_died_share=max_died / 100, patience=wait)

        def begin(owner: str) -> Job:
            return create(database, which, options, by=operator(), origin="cli", owner=owner)

        _work(settings, database, begin, as_json)


def jobs(
    id: Annotated[str | None, typer.Argument(metavar="[JOB]", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The latest so many.")] = 20,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    List the redrives, the latest first, or show one: how far it is, and why it stands.

    Examples:
      forebay dead-letters jobs
      forebay dead-letters jobs 019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11
    """
    from forebay.storage.redrive_jobs import JobNotFound, JobStore

    with open_store(read_settings(config, database_url=database_url)) as (database, _):
        store = JobStore(database)
        if id is not None:
            try:
                job = store.get(checked_id(id))
            except JobNotFound as error:
                raise CommandError(str(error), ExitCode.NOT_FOUND) from error
            if as_json:
                emit_json(_as_json(job))
            else:
                _print(job)
            return
        found = store.list(limit=limit)
    if as_json:
        emit_json([_as_json(job) for job in found])
        return
    if not found:
        note("there was no redrive yet")
        return
    emit_table(
        ("job", "began", "by", "state", "total", "sent", "arrived", "died again", "failed", "why"),
        [
            (
                j.id, when(j.created_at), j.requested_by, j.state, j.total, j.sent, j.arrived, j.died_again,
                j.failed, j.why or None,
            )
            for j in found
        ],
    )  # fmt: skip


# ---- the work


def _resume(settings: Settings, database: Database, id: str, as_json: bool) -> None:
    from forebay.storage.redrive_jobs import JobStore

    def begin(owner: str) -> Job:
        return JobStore(database).acquire(id, owner, by=operator())

    _work(settings, database, begin, as_json)


def _stop(database: Database, id: str, as_json: bool) -> None:
    from forebay.storage.redrive_jobs import JobStore

    with _conflicts():
        job = JobStore(database).stop(id, by=operator())
    say(as_json, _as_json(job), f"redrive job {id} is stopped: {job.sent} of {job.total} were sent")


def _work(settings: Settings, database: Database, begin: Callable[[str], Job], as_json: bool) -> None:
    with _conflicts():
        job, why = run(_run(settings, database, begin))
    say(as_json, {"dry_run": False, "job": job.id} | _counts(job), _sentence(job))
    if job.state == "done":
        if job.failed:
            raise CommandError(
                f"{job.failed} could not be sent and are dead as before ({why});"
                " the same command sends the rest",
                ExitCode.PARTLY_FAILED if job.sent else ExitCode.FAILED,
            )
        return
    again = f"go on with it: forebay dead-letters redrive --resume {job.id}"
    if job.state == "paused" and why == _INTERRUPTED:
        raise CommandError(f"paused; {again}", ExitCode.INTERRUPTED)
    raise CommandError(
        f"the redrive is {job.state}: {job.why or why}; look: forebay dead-letters list --groups; {again}",
        ExitCode.PARTLY_FAILED if job.sent else ExitCode.FAILED,
    )


_INTERRUPTED = "interrupted"


async def _run(settings: Settings, database: Database, begin: Callable[[str], Job]) -> tuple[Job, str]:
    """Open the broker and only then begin: where it is away there is no job to go on with."""
    from forebay.dead_letters.redrive import Redrive

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    owner = f"{socket.gethostname()}/{os.getpid()}"
    async with open_broker(settings.broker) as broker:
        job = await asyncio.to_thread(begin, owner)
        note(f"redrive job {job.id}: {job.total} dead letters")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            with progress("sending back", job.total) as bar:
                bar.advance(job.sent)
                work = Redrive(broker, database, job, owner=owner, watcher=bar)
                job = await work.run(stop)
            return job, work.why or job.why
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            # Whatever ended it, it can be gone on with at once.
            await asyncio.to_thread(_let_go, database, job.id, owner)


def _let_go(database: Database, id: str, owner: str) -> None:
    from forebay.errors import ForebayError
    from forebay.storage.redrive_jobs import JobStore

    try:
        JobStore(database).release(id, owner)
    except ForebayError:  # The database is away: the lease ends by itself.
        pass


@contextmanager
def _conflicts() -> Iterator[None]:
    from forebay.storage.redrive_jobs import JobBusy, JobNotFound

    try:
        yield
    except JobBusy as error:
        raise CommandError(str(error), ExitCode.CONFLICT) from error
    except JobNotFound as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from error


def _counts(job: Job) -> dict[str, Any]:
    names = ("state", "total", "sent", "arrived", "died_again", "failed")
    return {name: getattr(job, name) for name in names}


def _as_json(job: Job) -> dict[str, Any]:
    return dataclasses.asdict(job)


def _sentence(job: Job) -> str:
    parts = [f"{job.sent} sent back"]
    parts += [f"{job.arrived} of them arrived"] if job.arrived else []
    parts += [f"{job.died_again} died again"] if job.died_again else []
    if job.on_their_way:
        parts.append(f"{job.on_their_way} on their way (forebay dead-letters jobs {job.id})")
    return ", ".join(parts)


def _print(job: Job) -> None:
    rows = {
        "job": job.id,
        "state": job.state,
        "why": job.why or None,
        "asked for by": f"{job.requested_by}, {when(job.created_at)}",
        "ended": when(job.ended_at) if job.ended_at else None,
        "which": ", ".join(f"{name} {value}" for name, value in job.selection.items()),
        "canary": f"stage {job.stage + 1} of 4" if job.canary else "no",
        "rate": f"{job.rate:g} per second" if job.rate else None,
        "worked on by": job.lease_owner,
        "total": job.total,
        "sent": job.sent,
        "arrived": job.arrived,
        "died again": job.died_again,
        "on their way": job.on_their_way,
        "not sent": job.failed,
    }
    for name, value in rows.items():
        if value is not None:
            emit(f"{name:<13} {value}")
