"""
From an Authorization header to whoever sent it.

The file of keys is looked at every second and read again when it has changed; a
file that cannot be read changes nothing but the log. What was used up of a quota, and
what is in work, stays with a key and a tenant through every change.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog

from forebay.errors import SettingsError
from forebay.http_problems import RawHeaders
from gateway.admission import Admission
from gateway.answer import Answer
from gateway.callers import ANYONE, Caller, Queues
from gateway.keys_file import ApiKey, KeysFile, read
from gateway.problems import UNAUTHENTICATED, problem
from gateway.quotas import Quota
from gateway.settings import GatewaySettings

log = structlog.get_logger()

LOOK_EVERY = 1.0
"""Seconds after which a changed file counts, at the latest."""

REMEMBERED = 4096
"""
Authorization headers remembered with their callers.

Only those of valid keys, so that nobody without one can fill it; but one key has many
spellings ("Bearer", "bearer", spaces).
"""

SEVERAL = 0.5
"""The share of one tenant, where there are several and nothing else is said."""

_Signature = tuple[int, int, int]


class Keyring:
    """
    The API keys, by their digests.

    That a lookup takes longer for one key than for another tells nothing: what is looked up is a
    SHA-256 of what was sent, or the whole header of a caller who has the key.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        """
        Raises:
            SettingsError: the file cannot be used.
        """
        self._settings = settings
        self._path = settings.keys_file
        self._callers: dict[bytes, Caller] = {}
        self.era = object()
        """Another one whenever the keys have changed: until then a header that was good is good."""
        self._remembered: dict[bytes, Caller] = {}
        self._quotas: dict[str, Quota] = {}
        self._budgets: dict[str, Admission] = {}
        self._seen: _Signature | None = None
        self._complained = ""
        if self._path is not None:
            self._seen = _signature(self._path)
            self._use(read(self._path))

    @property
    def names(self) -> list[str]:
        return [caller.name for caller in self._callers.values()]

    def caller(self, headers: RawHeaders) -> Caller | Answer:
        """Who sends a request with these headers; or the 401."""
        if self._path is None:
            return ANYONE
        for name, value in headers:
            if name == b"authorization":
                caller = self._remembered.get(value)
                if caller is None or caller.expires_at is not None:
                    caller = self._look_up(value)
                if caller is None:
                    bearer = value[:7].lower() == b"bearer "
                    return self._refusal("invalid_token" if bearer else None)
                return caller
        return self._refusal(None)

    async def watch(self) -> None:
        """Read the file again whenever it has changed; never ends."""
        if self._path is None:
            return
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the file again if it has changed; if it cannot be used, go on with the keys there are."""
        assert self._path is not None
        try:
            # In a thread: the disk under it may be slow, or away.
            seen = await asyncio.to_thread(_signature, self._path)
            if seen == self._seen and not self._complained:
                return
            content = await asyncio.to_thread(read, self._path)
        except SettingsError as error:
            if str(error) != self._complained:
                log.error("the API keys cannot be read again; those read before stay valid", error=str(error))
                self._complained = str(error)
            return
        self._seen, self._complained = seen, ""
        before = set(self.names)
        self._use(content)
        now = set(self.names)
        log.info("API keys read again", keys=len(now), new=sorted(now - before), gone=sorted(before - now))

    def _look_up(self, header: bytes) -> Caller | None:
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        caller = self._callers.get(hashlib.sha256(token.strip()).digest())
        if caller is None:
            return None
        if caller.expires_at is not None and caller.expires_at.timestamp() <= time.time():
            return None
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered[header] = caller
        return caller

    def _refusal(self, error: str | None) -> Answer:
        challenge = b'Bearer realm="forebay"'
        if error is None:
            detail = "No API key was sent: Authorization: Bearer fbk_…"
        else:
            # RFC 6750, section 3.1: revoked, expired and never valid are one answer.
            challenge += b', error="' + error.encode() + b'"'
            detail = "The API key is not valid: unknown here, revoked or expired."
        return problem(
            UNAUTHENTICATED,
            f"{detail} Whoever runs this gateway makes one with `forebay api-keys create NAME`.",
            headers=[(b"www-authenticate", challenge)],
        )

    def _use(self, content: KeysFile) -> None:
        shares = _shares(content.keys)
        budgets = {tenant: self._budget(tenant, in_flight) for tenant, (in_flight, _) in shares.items()}
        quotas = {key.name: quota for key in content.keys if (quota := self._quota(key)) is not None}
        self._callers = {
            bytes.fromhex(key.sha256): Caller(
                tenant=key.whose,
                name=key.name,
                queues=Queues(key.queues),
                max_body_bytes=key.max_body_bytes,
                quota=quotas.get(key.name),
                budget=budgets[key.whose],
                journal_share=shares[key.whose][1],
                expires_at=key.expires_at,
            )
            for key in content.keys
        }
        self._remembered = {}
        self.era = object()
        self._quotas = quotas
        # Tenants that are gone may come back while their requests are still in work.
        self._budgets = {t: b for t, b in self._budgets.items() if b.count} | {
            t: b for t, b in budgets.items() if b is not None
        }

    def _budget(self, tenant: str, share: float) -> Admission | None:
        if share == 1.0:
            return None  # the limits for everybody are its own
        count = max(1, int(self._settings.max_in_flight * share))
        # One body always fits, or the tenant could never send any.
        size = max(self._settings.max_body_bytes, int(self._settings.max_in_flight_bytes * share))
        budget = self._budgets.get(tenant)
        if budget is None:
            return Admission(count, size)
        budget.max_count, budget.max_size = count, size
        return budget

    def _quota(self, key: ApiKey) -> Quota | None:
        if key.rate is None and key.bytes_per_second is None:
            return None
        quota = self._quotas.get(key.name)
        if quota is None:
            return Quota(rate=key.rate, burst=key.burst, bytes_per_second=key.bytes_per_second)
        quota.limit(rate=key.rate, burst=key.burst, bytes_per_second=key.bytes_per_second)
        return quota


def _shares(keys: tuple[ApiKey, ...]) -> dict[str, tuple[float, float]]:
    """Of the requests in work and of the journal, by tenant: the largest that one of its keys has."""
    now = datetime.now(UTC)
    valid = {key.whose for key in keys if not key.expired(now)}
    default = SEVERAL if len(valid) > 1 else 1.0
    shares: dict[str, tuple[float, float]] = {}
    for key in keys:
        in_flight, journal = shares.get(key.whose, (0.0, 0.0))
        shares[key.whose] = (
            max(in_flight, key.in_flight_share or default),
            max(journal, key.journal_share or default),
        )
    return shares


def _signature(path: Path) -> _Signature | None:
    """Changes whenever the file does; None while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
