"""
The file of API keys: JSON that a person can read and edit, and from which no key can be made.

    {"keys": [{"name": "shop", "sha256": "9f86…", "queues": ["orders", "orders-*"], "rate": 200}]}

A key is 256 random bits, so that its SHA-256 gives nothing away: there is nothing to
guess, and the slow hashes that passwords need would only make each request slow.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from forebay.errors import SettingsError
from forebay.section import ByteCount, Section

PREFIX = "fbk_"
"""What every key begins with, for people and for scanners that look for leaked ones."""

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
_GLOB = re.compile(r"[a-z0-9*?-]{1,63}")

Share = Annotated[float, Field(gt=0, le=1)]


def _glob(text: str) -> str:
    if not _GLOB.fullmatch(text):
        # Without the text, here and below: it may be a key, pasted into the wrong place.
        raise ValueError("a queue name or pattern is needed, like: orders, orders-* or *")
    return text


def _named(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise ValueError(
            "lower-case letters, digits, . _ and -, at most 63, beginning with a letter or digit"
        )
    return text


class ApiKey(Section):
    """One key. Limits that are not set do not exist; rates count per gateway process."""

    name: Annotated[str, AfterValidator(_named)]
    """For lists, logs and metrics."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the key's text."""
    created_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    """From then on it is refused."""
    tenant: Annotated[str, AfterValidator(lambda text: text and _named(text))] | None = None
    """
    Whose idempotency keys its requests have; the key's name by default. Two keys of one
    tenant allow one to be replaced by the other; "" is who everybody was before there were keys.
    """
    queues: Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], Field(min_length=1)]
    """Queues it may send to and ask about: names, or patterns such as orders-* and *."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Messages per second."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Messages at once, after a pause; those of one second by default."""
    bytes_per_second: Annotated[ByteCount, Field(ge=1)] | None = None
    """Body bytes per second, and so many at once."""
    max_body_bytes: ByteCount | None = None
    """Its largest body, where that is less than the gateway's."""
    in_flight_share: Share | None = None
    """
    How much its tenant may hold of gateway.max_in_flight and max_in_flight_bytes. By
    default all of it for an only tenant, and half of it where there are several.
    """
    journal_share: Share | None = None
    """How much its tenant may fill of the gateway's journal; the same default."""

    @property
    def whose(self) -> str:
        return self.name if self.tenant is None else self.tenant

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class KeysFile(Section):
    """All keys."""

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _names_and_keys_are_unique(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            twice = next((v for v in values if values.count(v) > 1), None)
            if twice is not None:
                raise ValueError(f"two keys have the {what} {twice!r}; each key has its own")
        return self


def new_key() -> str:
    """A fresh key; this is the only time that anybody sees it."""
    return PREFIX + secrets.token_hex(32)


def digest_of(key: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key).hexdigest()


def read(path: Path) -> KeysFile:
    """
    The keys in the file.

    Raises:
        SettingsError: it is not there, cannot be read, or is not a file of keys.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise SettingsError(
            f"gateway.keys_file {path} is not there; `forebay api-keys create NAME` makes it"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"gateway.keys_file {path} cannot be read ({error.strerror});"
            " it must belong to whoever runs the gateway"
        ) from error
    try:
        return KeysFile.model_validate_json(text or b"{}")
    except ValidationError as error:
        # Without the values: a key pasted into the wrong place must not get into a log.
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {_said(e['msg'])}" for e in error.errors()]
    raise SettingsError(f"gateway.keys_file {path} is not a file of API keys: {'; '.join(wrong[:5])}")


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


@contextmanager
def changing(path: Path) -> Iterator[list[ApiKey]]:
    """
    The keys, to change in place; written back when the block ends well. A missing file is an empty one.

    One process at a time. The file is replaced as a whole: whoever reads it meanwhile
    sees the old one or the new one. A new one may be read by its owner only; an old
    one's mode and owner stay.

    Raises:
        SettingsError: as `read`, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"{path.parent} cannot be used for API keys: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = list(read(path).keys) if path.exists() else []
        yield keys
        try:
            _write(path, KeysFile(keys=tuple(keys)), folder)
        except OSError as error:
            raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        os.close(folder)


def _write(path: Path, content: KeysFile, folder: int) -> None:
    document = content.model_dump(mode="json", exclude_none=True)
    # A link, as of a mounted secret, stays one.
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(json.dumps(document, indent=2).encode() + b"\n")
            file.flush()
            if target.exists():
                before = target.stat()
                os.fchmod(file.fileno(), before.st_mode & 0o777)
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    os.fsync(folder)


def make(name: str, **limits: object) -> tuple[str, ApiKey]:
    """
    A fresh key and what is kept of it; limits that are None are not set.

    Raises:
        SettingsError: a limit or the name cannot be.
    """
    key = new_key()
    given = {n: v for n, v in limits.items() if v is not None}
    try:
        kept = ApiKey.model_validate(
            {
                "name": name,
                "sha256": digest_of(key.encode()),
                "created_at": datetime.now(UTC).replace(microsecond=0),
                **given,
            }
        )
    except ValidationError as error:
        # Of each limit what was found first: a list whose items are wrong is also found to be too short.
        wrong = {str(e["loc"][0]): _said(e["msg"]) for e in reversed(error.errors()) if e["loc"]}
        raise SettingsError(
            "no such API key can be made: " + "; ".join(f"{what}: {why}" for what, why in wrong.items())
        ) from None
    return key, kept
