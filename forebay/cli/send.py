"""`forebay send`: one message, a file, or every line of a stream, through a running gateway."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from forebay.brokers.naming import check_queue_name
from forebay.cli._common import JsonOption, usable
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, emit, emit_json, fail, note, progress
from forebay.cli._values import seconds

if TYPE_CHECKING:
    from forebay.cli._sending import Envelope, Sender, Tally
    from forebay.client import Client, ClientError
    from forebay.ledger import Recorder

T = TypeVar("T")


def send(
    queue: Annotated[str, typer.Argument(help="The queue.", show_default=False)],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="BODY", help="The body; with --ndjson the file. '-' is stdin.", show_default=False
        ),
    ] = None,
    body: Annotated[str | None, typer.Option("--body", help="The body.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The whole file is one body.")
    ] = None,
    ndjson: Annotated[
        bool, typer.Option("--ndjson", help="Each line is one message, its bytes sent as they are.")
    ] = False,
    url: Annotated[
        str, typer.Option("--url", envvar="FOREBAY_URL", help="The gateway.")
    ] = "http://127.0.0.1:8080",
    content_type: Annotated[
        str | None, typer.Option("--content-type", help="JSON and known file names are recognised.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Sent again with the same key it stays one message."),
    ] = None,
    key_prefix: Annotated[
        str | None,
        typer.Option("--key-prefix", help='Line n gets the idempotency key "<prefix>/n"; else random.'),
    ] = None,
    ordering_key: Annotated[
        str | None, typer.Option("--ordering-key", help="Equal keys keep their order, where the queue does.")
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option("--delay", parser=seconds, metavar="DURATION", help="Not delivered before."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="Kept with the message.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=10_000, help="Connections (--ndjson).")
    ] = 64,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Messages per second at most (--ndjson).")
    ] = None,
    from_line: Annotated[
        int, typer.Option("--from-line", min=1, help="Skip the lines before (--ndjson).")
    ] = 1,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Append what was accepted, for verify.")
    ] = None,
    retry_for: Annotated[
        float,
        typer.Option(
            "--retry-for",
            parser=seconds,
            metavar="DURATION",
            show_default="60s",
            help="How long one message is tried.",
        ),
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """
    Send one message, a file or every line of a stream through a gateway.

    Examples:
      forebay send orders '{"id": 1}'
      forebay send scans --file scan.pdf
      forebay send flights --ndjson flights.ndjson --record sent.txt
      zcat flights.gz | forebay send flights --ndjson --rate 500

    A message that the gateway cannot take now is tried again under the same
    idempotency key, so it is stored once. $FOREBAY_API_KEY is sent if it is set.

    Exit codes: 0 all accepted, 8 some, 6 the gateway cannot be reached.
    """
    from forebay.cli._sending import Envelope
    from forebay.client import Client
    from forebay.ledger import Recorder

    check_queue_name(queue)
    envelope = Envelope(
        queue=queue,
        content_type=content_type or "application/json",
        ordering_key=ordering_key,
        delay=delay,
        headers=_headers(header or []),
    )
    if not ndjson and (key_prefix is not None or rate is not None or from_line != 1):
        raise CommandError("--key-prefix, --rate and --from-line are for --ndjson", ExitCode.USAGE)
    if ndjson and (idempotency_key is not None or body is not None):
        name = "--body" if body is not None else "--idempotency-key"
        hint = "give the file instead" if body is not None else "write --key-prefix"
        raise CommandError(f"{name} is for one message; with --ndjson {hint}", ExitCode.USAGE)

    with usable("--record wants a file in a folder that is there and may be written"):
        recorder = Recorder(record) if record is not None else None
    try:
        client = Client(
            url,
            os.environ.get("FOREBAY_API_KEY") or None,
            retry_for=retry_for,
            connections=concurrency,
            on_retry=_said_once(retry_for),
        )
    except ValueError as error:
        raise CommandError(f"--url: {error}", ExitCode.USAGE) from error
    if ndjson:
        lines = _lines_file(text, file)
        prefix = key_prefix if key_prefix is not None else secrets.token_hex(6)
        note(
            f"idempotency keys: {prefix}/<line>; sending again with --key-prefix {prefix} has the same effect"
        )
        again = _again(queue, lines, prefix, record)
        job = _send_lines(client, lines, envelope, prefix, concurrency, rate, from_line, recorder)
        tally, took = _run(job)
        _report(tally, took, prefix=prefix, queue=queue, again=again, as_json=as_json)
    else:
        data, guessed = _one_body(text, body, file)
        if content_type is None:
            envelope = _with_type(envelope, guessed)
        _run(_send_one(client, data, envelope, idempotency_key, recorder, as_json))


def _said_once(retry_for: float) -> Callable[[str], None]:
    """Says why it takes longer, the first time that it does."""
    said = False

    def on_retry(why: str) -> None:
        nonlocal said
        if not said:
            said = True
            note(f"{why}; trying again, each message for at most {duration(retry_for)}")

    return on_retry


def _headers(pairs: list[str]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"--header {pair!r}: write NAME=VALUE", ExitCode.USAGE)
        headers[name] = value
    return headers


def _with_type(envelope: Envelope, content_type: str) -> Envelope:
    import dataclasses

    return dataclasses.replace(envelope, content_type=content_type)


def _run(job: Coroutine[Any, Any, T]) -> T:
    # The faster loop takes a quarter off the cost of a message.
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(job)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(job)


# ---- one message

_GIVE_A_FILE = "name a file that can be read, or pipe it in"


def _one_body(text: str | None, body: str | None, file: Path | None) -> tuple[bytes, str]:
    """The body and what type it seems to be."""
    given = [value for value in (text, body, file) if value is not None]
    if len(given) > 1:
        raise CommandError("give one body: an argument, --body, --file or stdin", ExitCode.USAGE)
    if file is not None:
        with usable(_GIVE_A_FILE):
            data = file.read_bytes()
        named, _ = mimetypes.guess_type(file.name)
        return data, named or _type_of(data)
    if given and text != "-":
        data = os.fsencode(str(given[0]))
        return data, _type_of(data)
    if sys.stdin.isatty():
        note("reading the body from the terminal; end it with Ctrl-D")
    data = sys.stdin.buffer.read()
    if not data:
        # Under cron, or behind a command that failed: hardly ever meant to be a message.
        raise CommandError("stdin is empty; to send an empty message: --body ''", ExitCode.USAGE)
    return data, _type_of(data)


def _type_of(data: bytes) -> str:
    import orjson

    try:
        orjson.loads(data)
        return "application/json"
    except orjson.JSONDecodeError:
        pass
    try:
        data.decode()
        return "text/plain; charset=utf-8"
    except UnicodeDecodeError:
        return "application/octet-stream"


async def _send_one(
    client: Client,
    data: bytes,
    to: Envelope,
    idempotency_key: str | None,
    recorder: Recorder | None,
    as_json: bool,
) -> None:
    from forebay.client import ClientError

    async with client:
        try:
            accepted = await client.send(
                to.queue,
                data,
                content_type=to.content_type,
                idempotency_key=idempotency_key,
                ordering_key=to.ordering_key,
                delay=to.delay,
                headers=to.headers,
            )
        except ClientError as error:
            raise CommandError(_explain(error), _code(error)) from error
    if recorder is not None:
        recorder.add(accepted.id, hashlib.sha256(data).hexdigest(), accepted.queue)
    if as_json:
        emit_json(
            {
                "id": accepted.id,
                "queue": accepted.queue,
                "durability": accepted.durability,
                "duplicate": accepted.duplicate,
            }
        )
    else:
        emit(accepted.id)
        already = ", already accepted before" if accepted.duplicate else ""
        note(f"accepted on {accepted.queue} ({accepted.durability}{already})")
        note(f"follow it: forebay message {accepted.id}")


def _explain(error: ClientError) -> str:
    from forebay.client import Unauthorized, Unreachable

    text = f"not accepted: {error}"
    if isinstance(error, Unauthorized) and not os.environ.get("FOREBAY_API_KEY"):
        text += "\nPut the key into FOREBAY_API_KEY; it is read from there."
    if isinstance(error, Unreachable):
        text += (
            "\nIs the gateway running there? `forebay dev` starts one; --url or FOREBAY_URL names another."
        )
    if error.maybe_stored:
        text += (
            f"\nIt may have been stored all the same; send it again with --idempotency-key"
            f" {shlex.quote(error.idempotency_key)} and it stays one message."
        )
    return text


def _code(error: ClientError) -> ExitCode:
    from forebay.client import QueueUnknown, Unreachable

    if isinstance(error, Unreachable):
        return ExitCode.BROKER_UNREACHABLE
    if isinstance(error, QueueUnknown):
        return ExitCode.NOT_FOUND
    return ExitCode.CONFLICT if error.status == 422 else ExitCode.FAILED


# ---- many lines


def _lines_file(text: str | None, file: Path | None) -> Path | None:
    """Where the lines are; None is stdin."""
    if text is not None and file is not None:
        raise CommandError("give one file of lines", ExitCode.USAGE)
    path = Path(text) if text is not None else file
    return None if path is None or str(path) == "-" else path


def _again(queue: str, lines: Path | None, prefix: str, record: Path | None) -> str:
    """The command that sends the same lines again."""
    words = ["forebay", "send", queue, "--ndjson", *([str(lines)] if lines else []), "--key-prefix", prefix]
    if record is not None:
        words += ["--record", str(record)]
    return shlex.join(words)


async def _send_lines(
    client: Client,
    lines: Path | None,
    envelope: Envelope,
    prefix: str,
    concurrency: int,
    rate: float | None,
    from_line: int,
    recorder: Recorder | None,
) -> tuple[Tally, float]:
    from forebay.cli._feed import Feed
    from forebay.cli._sending import Sender

    with _opened(lines) as fd:
        total = _count_lines(fd)
        sender = Sender(
            client,
            Feed(fd, first=from_line),
            envelope,
            prefix=prefix,
            concurrency=concurrency,
            rate=rate,
            recorder=recorder,
        )
        started = time.monotonic()
        async with client:
            job = asyncio.create_task(sender.run())
            with _interruptible(sender, job):
                show = asyncio.create_task(_show(sender, client, total, from_line))
                try:
                    await job
                except asyncio.CancelledError:
                    sender.tally.interrupted = True
                finally:
                    show.cancel()
                    with suppress(asyncio.CancelledError):
                        await show
        return sender.tally, time.monotonic() - started


@contextmanager
def _opened(lines: Path | None) -> Iterator[int]:
    if lines is None:
        if sys.stdin.isatty():
            note("reading lines from the terminal; end them with Ctrl-D")
        yield sys.stdin.fileno()
        return
    with usable(_GIVE_A_FILE):
        file = lines.open("rb", buffering=0)
    with file:
        yield file.fileno()


def _count_lines(fd: int) -> int | None:
    """For the progress bar; None for a pipe, and where nobody looks at a bar."""
    if not sys.stderr.isatty() or not os.path.isfile(f"/dev/fd/{fd}"):
        return None
    count, start = 0, os.lseek(fd, 0, os.SEEK_CUR)
    while chunk := os.read(fd, 1 << 20):
        count += chunk.count(b"\n")
    os.lseek(fd, start, os.SEEK_SET)
    return count


@contextmanager
def _interruptible(sender: Sender, job: asyncio.Task[None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) finishes what is in flight, the second leaves it."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if sender.tally.interrupted:
            job.cancel()
            return
        note(f"stopping; waiting for {len(sender.tally.open)} in flight (again to leave them)")
        sender.stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _show(sender: Sender, client: Client, total: int | None, from_line: int) -> None:
    tally = sender.tally
    shown, last = 0, time.monotonic()
    with progress("sending", total and max(0, total - from_line + 1)) as bar:
        try:
            while True:
                await asyncio.sleep(0.25)
                done, now = tally.accepted + tally.failed, time.monotonic()
                retries = f", {client.retries} retries" if client.retries else ""
                bar.describe(f"sending {(done - shown) / (now - last):,.0f}/s{retries}")
                bar.advance(done - shown)
                shown, last = done, now
        finally:
            bar.advance(tally.accepted + tally.failed - shown)


def _report(tally: Tally, took: float, *, prefix: str, queue: str, again: str, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "queue": queue,
                "accepted": tally.accepted,
                "duplicates": tally.duplicates,
                "durability": dict(tally.durability),
                "failed": tally.failed,
                "failures": [{"line": line, "reason": reason} for line, reason in tally.failures],
                "interrupted": tally.interrupted,
                "next_line": tally.go_on_at,
                "key_prefix": prefix,
                "seconds": round(took, 3),
            }
        )
    else:
        how = ", ".join(f"{count} {kind}" for kind, count in tally.durability.items())
        before = f", {tally.duplicates} of them already accepted before" if tally.duplicates else ""
        speed = f"{tally.accepted / took:,.0f}/s" if took else ""
        emit(
            f"{tally.accepted} accepted on {queue} ({how}{before}) in {took:.1f} s, {speed}"
            if how
            else "0 accepted"
        )
    for line, reason in tally.failures:
        note(f"line {line}: {reason}")
    if tally.failed > len(tally.failures):
        note(f"{tally.failed - len(tally.failures)} {'more ' if tally.failures else ''}lines failed")
    on = f"go on with: {again} --from-line {tally.go_on_at}"
    if tally.stopped_by is not None:
        code = _code(tally.stopped_by) if not tally.accepted else ExitCode.PARTLY_FAILED
        raise CommandError(f"stopped: {tally.stopped_by}\n{on}", code)
    if tally.interrupted:
        fail(f"stopped before line {tally.last_taken + 1}; {len(tally.open)} left in flight\n{on}")
        raise typer.Exit(ExitCode.INTERRUPTED)
    if tally.failed:
        code = ExitCode.PARTLY_FAILED if tally.accepted else ExitCode.FAILED
        raise CommandError(f"{tally.failed} lines were refused; correct them, then {on}", code)
