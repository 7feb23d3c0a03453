"""`forebay doctor`."""

from __future__ import annotations

import asyncio
import platform
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DatabaseUrlOption,
    JsonOption,
    open_broker,
    open_database,
    run,
    sqlite_file,
    unknown_sink,
)
from forebay.cli._depths import Brokers, known_queues, look, reasons, with_reports
from forebay.cli._doctor_gateway import api_keys, certificate, fallbacks, journal, schemas, sources
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._findings import TIMEOUT, Finding, Verdict
from forebay.cli._output import duration, emit, emit_json, size
from forebay.cli._settings import read_loaded
from forebay.errors import ForebayError, SinkMisconfigured, SinkUnavailable
from forebay.settings_schema import shown

if TYPE_CHECKING:
    from forebay.brokers.api import Broker, Durability
    from forebay.settings import Loaded, Settings
    from forebay.storage.database import Database

SAFE_SQLITE = (3, 51, 3)
"""Older ones may corrupt a file in WAL mode when one process resets the log as another checkpoints it."""


def doctor(
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Check this installation: each line says ok, warn or fail, and what to do about it.

    Examples:
      forebay doctor
      forebay doctor --json

    Exit code 1 if anything fails; a warning is none. It reads only, and creates nothing.
    """
    loaded = read_loaded(config, broker_url=broker_url, database_url=database_url)
    findings = run(_examine(loaded))
    if as_json:
        worst = max((f.verdict for f in findings), key=get_args(Verdict).index)
        emit_json({"verdict": worst, "findings": [asdict(f) for f in findings]})
    else:
        for f in findings:
            emit(f"{f.verdict:<5} {f.check:<14} {f.text}")
            if f.fix:
                emit(f"{'':<20} -> {f.fix}")
    failed = sum(f.verdict == "fail" for f in findings)
    if failed:
        raise CommandError(f"{failed} of {len(findings)} checks failed", ExitCode.FAILED)


async def _examine(loaded: Loaded) -> list[Finding]:
    settings = loaded.settings
    findings = [
        *_versions(),
        *_settings(loaded),
        *api_keys(settings),
        *certificate(settings),
        *_handlers(settings),
    ]
    known: set[str] = set()
    findings += sources(settings)
    findings += await _targets(settings)
    findings += await _broker(settings, known)
    findings += await _old_brokers(settings, known)
    findings += await fallbacks(settings, known)
    findings += await journal(settings)
    findings += await asyncio.to_thread(_reported, "database", lambda: list(_database(settings, known)))
    return [*findings, *_disks(settings), *_files(settings)]


def _reported(check: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    """What `examine` finds; an error of ours is a finding too."""
    try:
        return examine()
    except ForebayError as error:
        return [Finding(check, "fail", str(error).splitlines()[0])]


def _versions() -> Iterator[Finding]:
    from importlib.metadata import version as version_of

    from forebay import __version__

    yield Finding(
        "forebay", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    # apsw brings its own SQLite, and has its version with one more number at the end.
    version = version_of("apsw").rpartition(".")[0]
    if tuple(int(part) for part in version.split(".")) >= SAFE_SQLITE:
        yield Finding(
            "sqlite", "ok", f"{version} for the embedded queue, {sqlite3.sqlite_version} for a database file"
        )
    else:
        safe = ".".join(map(str, SAFE_SQLITE))
        yield Finding(
            "sqlite", "fail", f"{version}: may corrupt the embedded queue (fixed in {safe})",
            "pip install --upgrade apsw",
        )  # fmt: skip


def _settings(loaded: Loaded) -> Iterator[Finding]:
    names = list(loaded.settings.queues)
    yield Finding("settings", "ok", f"{loaded.file or 'no file'}; {len(loaded.provenance)} values set")
    if not names:
        yield Finding(
            "queues", "warn", "none is named, so `forebay gateway` would accept nothing (`forebay dev` does)",
            'queue_names = "orders" in forebay.toml, or FOREBAY_QUEUE_NAMES=orders',
        )  # fmt: skip


def _handlers(settings: Settings) -> Iterator[Finding]:
    from consumers.handlers import load_handler

    yield from schemas(settings)
    for name, queue in settings.queues.items():
        if (wrong := unknown_sink(queue.sink)) is not None:
            yield Finding(f"sink {name}", "fail", wrong, f'queues.{name}.sink = "database"')
        if queue.handler is None:
            continue
        handler = queue.handler
        try:
            load_handler(handler)
        except Exception as error:
            # Also what the module itself raises while it is imported.
            yield Finding(
                f"handler {name}", "fail", f"{handler}: {error}", "correct it, then run doctor again"
            )
        else:
            yield Finding(f"handler {name}", "ok", handler)


async def _targets(settings: Settings) -> list[Finding]:
    """Whether what queues are sent on to answers: without a message, and without making anything."""
    from consumers.sinks.factory import make_sink
    from forebay.wiring import forwarding

    findings = []
    forwarded = {target.queue or name: name for name, target in settings.forward.items()}
    for name, queue in settings.queues.items():
        if queue.sink not in ("http", "broker"):
            continue
        target = forwarded.get(name)
        check = f"sink {name}" if target is None else f"forward {target}"
        try:
            sink = make_sink(name, queue, None, forwarding(settings))
            try:
                async with asyncio.timeout(TIMEOUT):
                    await sink.probe()
            finally:
                await sink.close()
        except (ForebayError, TimeoutError) as error:
            why = str(error).splitlines()[0] if str(error) else f"no answer within {TIMEOUT:g} s"
            table = "http" if queue.sink == "http" else "forward"
            setting = f"queues.{name}.{table}" if target is None else f"forward.{target}"
            fix = f"start it, or correct {setting}; until then its messages wait"
            findings.append(Finding(check, "fail", why, fix))
        else:
            where = queue.http.url if queue.sink == "http" else queue.forward.broker_url
            on = f"queue {queue.forward.queue!r} on " if queue.sink == "broker" else ""
            text = f"{on}{shown(where) or 'the same broker'} answers"
            findings.append(_without_answers(check, text, target, settings) or Finding(check, "ok", text))
    return findings


def _without_answers(check: str, text: str, target: str | None, settings: Settings) -> Finding | None:
    """A target whose senders are to wait for answers that nobody can give them."""
    if target is None or not settings.forward[target].wait or settings.database.url is not None:
        return None
    return Finding(
        check,
        "warn",
        f"{text}, but without a database nobody is told what; senders get 202 at once",
        f"set database.url, or forward.{target}.wait = 0",
    )


async def _broker(settings: Settings, known: set[str]) -> list[Finding]:
    """`known` gets the broker's identity."""
    url = shown(settings.broker.url)
    if url is None:
        return [Finding("broker", "fail", "broker.url is not set", "FOREBAY_BROKER__URL, or `forebay dev`")]
    try:
        async with asyncio.timeout(TIMEOUT), open_broker(settings.broker) as broker:
            known.add(broker.identity)
            await broker.ping()
            best = broker.capabilities
            queues = await broker.declared_queues()
            examined = await broker.examine(sorted({*settings.queues, *(queues or ())}))
    except TimeoutError:
        return [Finding("broker", "fail", f"{url}: no answer within {TIMEOUT:g} s", "is it running?")]
    except ForebayError as error:
        return [Finding("broker", "fail", str(error).splitlines()[0])]
    listed = "" if queues is None else f"; queues: {', '.join(queues) or 'none yet'}"
    findings = [Finding("broker", "ok", f"{url} takes messages{listed}")]
    findings += _durability(best.durability, settings)
    findings += [Finding(f.check, f.verdict, f.text, f.fix) for f in examined]
    taken, most = settings.gateway.max_body_bytes, best.max_body_bytes
    if taken > most:
        text = f"the gateway takes {size(taken)}, the broker {size(most)}: what is between is answered 413"
        findings.append(Finding("body size", "warn", text, f"gateway.max_body_bytes = {most}"))
    return findings


def _durability(reached: Durability, settings: Settings) -> Iterator[Finding]:
    from forebay.brokers.api import DURABILITIES

    meaning = {
        "replicated": "a 202 means: a majority of the broker's nodes has it",
        "synced": "a 202 means: it is on one disk, and survives a power cut",
        "journaled": "a 202 means: it is on the gateway's own disk",
        "unsynced": "a 202 means: it is in the broker's memory; a power cut may lose it",
    }[reached]
    wanted = settings.gateway.min_durability
    if DURABILITIES.index(reached) < DURABILITIES.index(wanted):
        yield Finding(
            "durability", "fail",
            f"{reached}: {meaning}; gateway.min_durability is {wanted!r}, so the gateway does not start",
            f'another broker.url, or gateway.min_durability = "{reached}"',
        )  # fmt: skip
    elif reached == "unsynced":
        yield Finding("durability", "warn", f"{reached}: {meaning}", "use a broker that syncs to disk")
    else:
        yield Finding("durability", "ok", f"{reached}: {meaning}")


async def _old_brokers(settings: Settings, known: set[str]) -> list[Finding]:
    """`known` has the identity of the broker in use, if it was reached, and gets theirs."""
    from forebay.wiring import safe_url

    findings = []
    for old in settings.broker.old():
        url = safe_url(old)
        try:
            async with asyncio.timeout(TIMEOUT), open_broker(old) as broker:
                if broker.identity in known:
                    text, fix = f"{url} is the broker in use, by another URL", "take it out of broker.drain"
                    findings.append(Finding("drain", "warn", text, fix))
                    continue
                known.add(broker.identity)
                findings.append(await _left_on(broker, url, settings))
        except (ForebayError, TimeoutError) as error:
            why = str(error).splitlines()[0] if str(error) else f"no answer within {TIMEOUT:g} s"
            text = f"{url} cannot be asked, so nothing on it is consumed: {why}"
            findings.append(Finding("drain", "fail", text, "start it, or correct broker.drain"))
    return findings


async def _left_on(broker: Broker, url: str, settings: Settings) -> Finding:
    brokers = Brokers(broker)
    depths = await with_reports(await look(brokers, await known_queues(brokers, settings.queues)), settings)
    held = [depth.held for depth in depths]
    left = sum(n for n in held if n is not None)
    if None in held:
        why = "; ".join(reasons(depths))
        return Finding("drain", "ok", f"{url} is drained; at least {left:,} messages are left ({why})")
    if left:
        return Finding("drain", "ok", f"{url} is drained; {left:,} messages are left")
    fix = "once no gateway publishes to it, take it out of broker.drain"
    return Finding("drain", "ok", f"{url} is empty", fix)


def _database(settings: Settings, known: set[str]) -> Iterator[Finding]:
    """`known` are the identities of the brokers that were reached."""
    from forebay.storage.queries import table_sizes
    from forebay.storage.reports import left_behind
    from forebay.storage.schema import schema_state
    from forebay.wiring import safe_url

    if settings.database.url is None:
        fix = "FOREBAY_DATABASE__URL, or `forebay dev`"
        yield Finding("database", "fail", "database.url is not set", fix)
        return
    with open_database(settings) as database:
        try:
            database.ping()
        except (SinkUnavailable, SinkMisconfigured) as error:
            yield Finding("database", "fail", f"{database.safe_url}: {error}")
            return
        yield Finding("database", "ok", f"{database.safe_url} answers")
        if database.dialect == "mysql":
            from forebay.storage.mysqlserver import examine

            for r in examine(database, max_body_bytes=settings.gateway.max_body_bytes):
                yield Finding(r.check, r.verdict, r.text, r.fix)
        state = schema_state(database)
        fix = {
            "empty": "forebay migrate",
            "behind": "forebay migrate",
            "ahead": "install the newer release that made it, or point database.url elsewhere",
        }.get(state, "")
        usable = state in ("current", "newer")
        text = "of a newer release, which only added to it" if state == "newer" else f"{state}"
        yield Finding("schema", "ok" if usable else "fail", text, fix)
        if usable:
            for table in table_sizes(database):
                about = "" if table.exact else "about "
                on_disk = "" if table.bytes is None else f", {size(table.bytes)}"
                text = f"{about}{table.rows:,} rows{on_disk}, {table.rows_last_day:,} of them in the last day"
                yield Finding("table", "ok", f"{table.name}: {text}")
            yield from _mapped_tables(settings, database)
            yield from _retention(settings, database)
            urls = [safe_url(broker) for broker in (settings.broker, *settings.broker.others())]
            for left in left_behind(database, known=known, urls=urls):
                yield Finding("other broker", "warn", left.sentence, left.setting)


def _mapped_tables(settings: Settings, database: Database) -> Iterator[Finding]:
    from forebay.storage.mapping.create import inspect
    from forebay.storage.mapping.plan import TableMismatch

    for name, queue in settings.queues.items():
        if queue.table is None:
            continue
        spec = queue.table.spec()
        try:
            found = inspect(database, spec)
        except TableMismatch as error:
            for line in error.differences:
                wrong, _, fix = line.partition("; ")
                # Those that start will make what is missing.
                lacks = spec.create and ("does not exist" in wrong or "not in the table" in wrong)
                if lacks:
                    fix = "`forebay consume` will make it (create = true)"
                yield Finding(f"table {name}", "warn" if lacks else "fail", f"{spec.full_name}: {wrong}", fix)
        except (SinkUnavailable, SinkMisconfigured) as error:
            yield Finding(f"table {name}", "fail", f"{spec.full_name}: {error}")
        else:
            text = f"{spec.full_name}: {len(found.targets)} columns fit"
            yield Finding(f"table {name}", "ok", text)


def _retention(settings: Settings, database: Database) -> Iterator[Finding]:
    """Once-only records must outlive every way on which a message may come again."""
    from datetime import UTC, datetime

    from forebay.storage.retention import oldest_open_dead_letter

    remembers = [name for name, q in settings.queues.items() if q.sink not in ("database", "broker")]
    retention = settings.database.once_only_retention
    if not remembers or retention is None:
        return
    longest, queue = max((settings.queues[name].retry.max_age, name) for name in remembers)
    oldest = oldest_open_dead_letter(database)
    age = 0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds()
    fix = f'database.once_only_retention = "{max(90, round(2 * max(longest, age) / 86_400))}d"'
    if longest >= retention:
        yield Finding(
            "once only",
            "warn",
            f"records of what was handled are kept for {duration(retention)}, and messages of {queue} may be"
            f" retried for {duration(longest)}: what comes again after that is handled twice",
            fix,
        )
    elif age >= retention:
        yield Finding(
            "once only",
            "warn",
            f"the oldest open dead letter is {duration(age)} old, records are kept for {duration(retention)}:"
            " they are kept as long as it is open, and grow meanwhile",
            f"forebay dead-letters list --before {duration(retention)}; or {fix}",
        )
    else:
        yield Finding("once only", "ok", f"records of what was handled are kept for {duration(retention)}")


def _disks(settings: Settings) -> Iterator[Finding]:
    least = settings.broker.sqlite.min_free_bytes
    for what, secret in (("queue", settings.broker.url), ("database", settings.database.url)):
        file = sqlite_file(secret.get_secret_value()) if secret else None
        if file is None:
            continue
        folder = next(p for p in file.resolve().parents if p.exists())
        disk = shutil.disk_usage(folder)
        text = f"{size(disk.free)} of {size(disk.total)} free under the {what} ({folder})"
        # The embedded queue refuses publishes below this; the database has no such brake.
        floor = min(least, disk.total // 20)
        verdict: Verdict = "fail" if disk.free < floor else "warn" if disk.free < 2 * floor else "ok"
        fix = "" if verdict == "ok" else f"free some space: below {size(floor)} the queue refuses messages"
        yield Finding("disk", verdict, text, fix)


def _files(settings: Settings) -> Iterator[Finding]:
    # The gateway raises the soft limit by itself.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    from gateway.connections import OTHER_FILES

    most = settings.gateway.max_connections
    wanted = most + OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        text = f"{hard} allowed; {most} connections need {wanted}, so the gateway will hold fewer"
        fix = f"ulimit -n {wanted}, or LimitNOFILE={wanted} in the systemd unit"
        yield Finding("open files", "warn", text, fix)
    else:
        allowed = "any number" if hard == resource.RLIM_INFINITY else str(hard)
        yield Finding("open files", "ok", f"{allowed} allowed")
