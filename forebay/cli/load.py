"""`forebay load`: a steady load on a gateway, with what its senders feel."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import JsonOption
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, emit, emit_json, note
from forebay.cli._values import seconds as parse_seconds

if TYPE_CHECKING:
    from forebay.demo.load import Load, Outcomes, Tick


def load(
    queue: Annotated[str, typer.Argument(help="The queue.", show_default=False)],
    url: Annotated[
        str, typer.Option("--url", envvar="FOREBAY_URL", help="The gateway.")
    ] = "http://127.0.0.1:8080",
    rate: Annotated[float, typer.Option("--rate", min=0.1, max=5_000, help="Orders per second.")] = 100.0,
    seconds: Annotated[
        float,
        typer.Option(
            "--for", parser=parse_seconds, metavar="DURATION", show_default="1m", help="How long to send."
        ),
    ] = 60.0,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            parser=parse_seconds,
            metavar="DURATION",
            show_default="30s",
            help="A sender gives up after this.",
        ),
    ] = 30.0,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Append what was accepted, for verify.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """
    Put a steady load on a gateway, and see how long its senders wait.

    Examples:
      forebay load orders --rate 200 --for 5m
      forebay load orders --rate 500 --record sent.txt && forebay verify sent.txt --wait 1m

    Small JSON orders, {"id", "customer", "total"}, at a constant rate that does not yield when answers
    come late; a latency counts from the moment when its order was due. Nothing is sent again. A line
    every second says how it goes. Ctrl-C ends the sending. $FOREBAY_API_KEY is sent if it is set.

    Exit codes: 0 all accepted, 8 some, 6 none.
    """
    from forebay.brokers.naming import check_queue_name
    from forebay.demo.load import Load
    from forebay.demo.samples import as_figures, side_of
    from forebay.ledger import Recorder

    check_queue_name(queue)
    if not url.startswith(("http://", "https://")):
        raise CommandError(
            f"--url {url!r} is not a gateway's address; write http://host:port", ExitCode.USAGE
        )
    recorder = None if record is None else Recorder(record)
    work = Load(
        f"{url.rstrip('/')}/v1/queues/{queue}/messages", rate=rate, seconds=seconds, timeout=timeout,
        record=None if recorder is None else (queue, recorder),
        api_key=os.environ.get("FOREBAY_API_KEY"),
    )  # fmt: skip
    outcomes = _run(work)
    if recorder is not None:
        recorder.close()
    side = side_of(outcomes)
    if as_json:
        emit_json(as_figures(side))
    else:
        emit(
            f"{side.sent:,} sent, {side.accepted:,} accepted; failed: {side.refused:,} answered otherwise,"
            f" {side.timed_out:,} not answered in time, {side.no_answer:,} not at all"
        )
        emit(
            f"accepted after: p50 {duration(side.p50)}, p99 {duration(side.p99)},"
            f" at most {duration(side.slowest)}"
        )
    if side.not_sent:
        raise CommandError(
            f"{side.not_sent:,} could not be sent: no socket was left here; lower --rate or raise `ulimit -n`"
        )
    if side.failed:
        code = ExitCode.PARTLY_FAILED if side.accepted else ExitCode.BROKER_UNREACHABLE
        raise CommandError(f"{side.failed:,} were not accepted; what is wrong there: forebay status", code)


def _run(work: Load) -> Outcomes:
    import uvloop

    def tell(tick: Tick) -> None:
        note(
            f"{tick.at:6.0f} s  {tick.accepted:,} accepted  {tick.failed:,} failed"
            f"  p50 {duration(tick.p50)}  p99 {duration(tick.p99)}  oldest waits {duration(tick.oldest)}"
        )

    async def body() -> Outcomes:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, work.stop)
        return await work.run(tell, every=1.0)

    return uvloop.run(body())
