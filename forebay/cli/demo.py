"""`forebay demo`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli._common import JsonOption
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, emit, emit_json, note, warn

if TYPE_CHECKING:
    from forebay.demo.play import Play, Result
    from forebay.demo.samples import Sample, Side


def demo(
    seconds: Annotated[
        float, typer.Option("--seconds", min=5, max=100, help="How long the load goes on.")
    ] = 60.0,
    rate: Annotated[
        float, typer.Option("--rate", min=10, max=500, help="Orders per second, to each side.")
    ] = 100.0,
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", metavar="URL", help="A database that may be written to."),
    ] = None,
    broker_url: Annotated[
        str | None,
        typer.Option("--broker-url", metavar="URL", help="A RabbitMQ (amqp://) for the demo's queue."),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="SQLite and the embedded queue, even if servers are here.")
    ] = False,
    png: Annotated[
        Path,
        typer.Option("--png", metavar="FILE", help="Where the curves go; beside it, as .csv, the figures."),
    ] = Path("forebay-demo.png"),
    as_json: JsonOption = False,
) -> None:
    """
    See it: the database dies, the broker dies, a poison message comes, and nothing is lost.

    Examples:
      forebay demo
      forebay demo --embedded --seconds 30
      forebay demo --json > demo.json

    The same load goes through Forebay and to an endpoint that writes to the database itself, side by
    side, for a minute. Everything is real: `forebay gateway` and `forebay consume`, and
    the PostgreSQL and RabbitMQ of this machine, started for the demo on free ports in a temporary folder
    and killed; or servers behind URLs, whose connections are cut. Where there are none, SQLite and
    the embedded queue play them, and die by a lock on their files.

    It ends with the ledger, by `forebay verify`, and with the curves as a PNG
    (pip install 'forebay[demo]'). Nothing else is left behind, at Ctrl-C neither.

    Exit codes: 0 nothing refused and all accounted for, 1 not so, 3 a server did not start.
    """
    from forebay.demo.crew import Crew, DemoError
    from forebay.demo.play import Play

    if not png.resolve().parent.is_dir():
        raise CommandError(f"--png {png}: there is no such folder; make it first", ExitCode.USAGE)
    samples: list[Sample] = []
    try:
        with ExitStack() as after, Crew() as crew:
            play = Play(
                crew, rate=rate, seconds=seconds,
                database_url=database_url, broker_url=broker_url, embedded=embedded,
            )  # fmt: skip
            for why in play.parts.notes:
                note(why)
            after.callback(play.tidy)
            _watch(play, samples)
            result = play.result()
    except DemoError as error:
        raise CommandError(str(error), ExitCode.STARTUP_FAILED) from error
    except KeyboardInterrupt:
        note("stopped; nothing is left running")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    saved = _save(result, samples, png)
    if as_json:
        emit_json(_as_json(result, saved))
    else:
        _print(result, saved)
    if not result.good:
        raise CommandError("it does not add up: please report this with the CSV file")


def _watch(play: Play, samples: list[Sample]) -> None:
    """Show the play until it is over, and keep what was seen."""
    from forebay.demo.screen import screen_for

    with screen_for(sys.stderr.isatty()) as screen:
        play.start()
        while not play.over.wait(0.25):
            sample = play.look()
            if sample is not None:
                samples.append(sample)
            screen.show(play, samples)


def _save(result: Result, samples: list[Sample], png: Path) -> list[Path]:
    """The curves: always as CSV, and as a PNG where matplotlib is installed."""
    from forebay.demo.samples import write_csv

    table = png.with_suffix(".csv")
    write_csv(table, samples)
    try:
        from forebay.demo.curves import draw
    except ImportError:
        warn("matplotlib is not installed, so the curves are figures only: pip install 'forebay[demo]'")
        return [table]
    draw(png, result, samples)
    return [png, table]


def _print(result: Result, saved: list[Path]) -> None:
    ledger, forebay, direct = result.ledger, result.forebay, result.direct
    emit(
        f"Through Forebay: {ledger.accepted:,} accepted = {ledger.stored:,} stored"
        f" + {ledger.waiting:,} waiting + {ledger.dead:,} dead (the poison message)"
    )
    emit(
        f"                 {ledger.lost:,} lost, {ledger.duplicated:,} doubled, {ledger.altered:,} altered"
        f" (forebay verify); {forebay.failed:,} refused; {_latency(forebay)}"
    )
    emit(
        f"Direct endpoint: {direct.accepted:,} of {direct.sent:,} accepted; {direct.failed:,} failed"
        f" ({direct.refused:,} errors, {direct.timed_out:,} after 30 s, {direct.no_answer:,} cut off);"
        f" {_latency(direct)}"
    )
    unknown = result.direct_rows - direct.accepted
    if unknown:
        emit(f"                 {unknown:,} stored although the sender was told that it failed")
    emit(f"Curves: {', '.join(map(str, saved))}")


def _latency(side: Side) -> str:
    return f"p50 {duration(side.p50)}, p99 {duration(side.p99)}, slowest {duration(side.slowest)}"


def _as_json(result: Result, saved: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    from forebay.demo.samples import as_figures

    database, broker = result.parts.database, result.parts.broker
    return {
        "good": result.good,
        "seconds": result.seconds,
        "rate": result.rate,
        "database": {"what": database.label, "fate": database.fate},
        "broker": {"what": broker.label, "fate": broker.fate},
        "ledger": asdict(result.ledger),
        "forebay": as_figures(result.forebay),
        "direct": {**as_figures(result.direct), "rows": result.direct_rows},
        "events": [asdict(mark) for mark in result.marks],
        "files": [str(path) for path in saved],
    }
