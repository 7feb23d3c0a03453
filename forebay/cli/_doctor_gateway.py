"""What `forebay doctor` finds of a gateway: keys, webhooks, schemas, and where else messages go."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from forebay.cli._common import open_broker
from forebay.cli._findings import TIMEOUT, Finding, Verdict
from forebay.cli._output import size
from forebay.errors import ForebayError

if TYPE_CHECKING:
    from forebay.settings import Settings


def api_keys(settings: Settings) -> Iterator[Finding]:
    from datetime import UTC, datetime

    from gateway.keys_file import read

    path = settings.gateway.keys_file
    if path is None:
        return
    try:
        keys = read(path).keys
        mode = path.stat().st_mode
    except (ForebayError, OSError) as error:
        yield Finding("api keys", "fail", str(error), f"forebay api-keys list --file {path}")
        return
    valid = [key for key in keys if not key.expired(datetime.now(UTC))]
    if not valid:
        text = f"{path} has no valid key, so every request is answered 401"
        yield Finding("api keys", "fail", text, "forebay api-keys create NAME")
    elif mode & 0o022:
        text = f"{path} may be written by others than its owner: whoever can, lets himself in"
        yield Finding("api keys", "warn", text, f"chmod 600 {path}")
    else:
        old = len(keys) - len(valid)
        expired = f", {old} expired" if old else ""
        yield Finding("api keys", "ok", f"{len(valid)} valid{expired} in {path}")


def certificate(settings: Settings) -> Iterator[Finding]:
    from gateway import tls

    path = settings.gateway.tls_cert
    if path is None:
        return
    try:
        tls.certificate(settings.gateway)
    except ForebayError as error:
        yield Finding("tls", "fail", str(error), "correct it; with it the gateway does not start")
    else:
        yield Finding("tls", "ok", f"{path} and its key fit")


def sources(settings: Settings) -> Iterator[Finding]:
    for name, source in settings.sources.items():
        if source.queue not in settings.queues:
            text = f"its queue {source.queue!r} is not declared, so the gateway does not start"
            yield Finding(f"source {name}", "fail", text, f"add {source.queue} to queue_names")
            continue
        secrets = f"{len(source.secrets)} secret{'' if len(source.secrets) == 1 else 's'}"
        text = f"{source.scheme}, {secrets}; POST /v1/sources/{name} goes to queue {source.queue!r}"
        if source.scheme == "hmac" and not (source.hmac.timestamp_header or source.hmac.timestamp_field):
            fix = "sign the time too, if the service can; hmac.timestamp_header"
            yield Finding(f"source {name}", "warn", f"{text}; a delivery never expires", fix)
        else:
            yield Finding(f"source {name}", "ok", text)


def schemas(settings: Settings) -> Iterator[Finding]:
    from gateway.schemas import Schema

    for name, queue in settings.queues.items():
        file = queue.schema_.file
        if file is None:
            continue
        check = f"schema {name}"
        try:
            Schema(f"queues.{name}.schema.file", file)
        except ForebayError as error:
            verdict: Verdict = "fail" if queue.schema_.mode == "reject" else "warn"
            yield Finding(check, verdict, str(error), "correct it; with it the gateway does not start")
        else:
            does = (
                "what does not fit is answered 422" if queue.schema_.mode == "reject" else "not checked: off"
            )
            yield Finding(check, "ok", f"{file}; {does}")


async def fallbacks(settings: Settings, known: set[str]) -> list[Finding]:
    """`known` as for the old ones."""
    from forebay.wiring import safe_url

    findings = []
    for one in settings.broker.fallbacks():
        url = safe_url(one)
        try:
            async with asyncio.timeout(TIMEOUT), open_broker(one) as broker:
                await broker.ping()
                reached = broker.capabilities.durability
                if broker.identity in known:
                    text, fix = f"{url} is another broker's second URL", "take it out of broker.fallback"
                    findings.append(Finding("fallback", "fail", text, fix))
                    continue
                known.add(broker.identity)
                findings.append(Finding("fallback", "ok", f"{url} takes messages: {reached}"))
        except (ForebayError, TimeoutError) as error:
            why = str(error).splitlines()[0] if str(error) else f"no answer within {TIMEOUT:g} s"
            text = f"{url} would not take messages now: {why}"
            findings.append(Finding("fallback", "fail", text, "start it, or correct broker.fallback"))
    return findings


async def journal(settings: Settings) -> list[Finding]:
    directory = settings.gateway.journal
    if directory is None:
        return []
    from forebay.journal.files import journal_files
    from forebay.journal.looking import look
    from forebay.wiring import journal_opener

    above = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        text = f"this user may not write {directory}"
        return [
            Finding("journal", "fail", text, "run it as the gateway's user, or set another gateway.journal")
        ]
    findings = []
    if settings.gateway.min_durability not in ("unsynced", "journaled"):
        text = f"it is never used: gateway.min_durability is {settings.gateway.min_durability!r}"
        findings.append(Finding("journal", "warn", text, 'gateway.min_durability = "journaled"'))
    waiting = 0
    for file in journal_files(directory):
        found = await look(file, journal_opener(settings, create=False))
        if found.trouble:
            text = f"{file.name}: {found.trouble.splitlines()[0]}"
            findings.append(Finding("journal", "fail", text, "forebay journal check"))
            continue
        waiting += found.messages or 0
        if found.set_aside:
            text = f"{file.name}: the broker refused {found.set_aside} messages for good"
            findings.append(Finding("journal", "warn", text, "forebay journal export"))
        if found.messages and not found.owned:
            text = f"{file.name}: {found.messages} messages, and its gateway is gone"
            fix = "start a gateway on this directory, or run forebay journal drain"
            findings.append(Finding("journal", "warn", text, fix))
    disk = shutil.disk_usage(above)
    text = f"{waiting} messages in {directory}; {size(disk.free)} of {size(disk.total)} free under it"
    room = disk.free > 2 * min(settings.broker.sqlite.min_free_bytes, disk.total // 20)
    findings.append(Finding("journal", "ok" if room else "warn", text, "" if room else "free some space"))
    return findings
