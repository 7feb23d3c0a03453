"""The `[broker.sqlite]` table."""

from __future__ import annotations

from forebay.section import ByteCount, PositiveSeconds, Section


class SQLiteSettings(Section):
    """The embedded queue: one SQLite file for all processes of one host."""

    lease: PositiveSeconds = 30.0
    """How long a consumer may hold a message before others may take it; renewed while the consumer lives."""
    max_bytes: ByteCount = 10 * 2**30
    """Publishes are refused (503) while the queue holds more bytes of bodies than this."""
    min_free_bytes: ByteCount = 512 * 2**20
    """Publishes are refused (503) below this much free disk, or below 5 % of the disk if that is less."""
    ballast_bytes: ByteCount = 64 * 2**20
    """A file kept beside the queue and given up on a full disk, so that consumers can still acknowledge."""
    max_body_bytes: ByteCount = 900_000
    """The largest body taken; the default fits every broker, so that a swap refuses nothing."""
