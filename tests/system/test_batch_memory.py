"""A batch far larger than the gateway's memory flows through it."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

from tests.system.harness import Process, Site

MEGABYTES = int(os.environ.get("BATCH_MB", "100"))
LINE = b'{"note":"' + b"x" * 488 + b'"}\n'
PER_ITEM = 40
BUDGET = 8 * 2**20
AROUND = 48 * 2**20
"""What uvicorn, SQLite and the allocator hold besides, whatever the size of the upload."""


def peak(process: Process) -> int:
    """Bytes of memory that a process ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_memory_is_bounded_by_the_budget_and_40_bytes_per_item(bare_site: Site) -> None:
    site = bare_site
    site.queues = "orders"
    count = MEGABYTES * 2**20 // len(LINE)
    site.settings |= {
        "GATEWAY__MAX_BATCH_ITEMS": str(count),
        "GATEWAY__MAX_IN_FLIGHT_BYTES": str(BUDGET),
        "BROKER__SQLITE__MAX_BYTES": "10GiB",
    }
    gateway = site.gateway()
    before = peak(gateway)

    def upload() -> Iterator[bytes]:
        for start in range(0, count, 1_000):
            yield LINE * min(1_000, count - start)

    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=600)
    connection.request(
        "POST",
        "/v1/queues/orders/batch",
        upload(),
        {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"},
        encode_chunked=True,
    )
    answer = connection.getresponse()
    ok = size = 0
    while piece := answer.read(2**20):
        size += len(piece)
        ok += piece.count(b'"synced"')
    connection.close()

    grown = peak(gateway) - before
    print(f"{MEGABYTES} MiB, {count} items: answered {answer.status}, grown by {grown / 2**20:.1f} MiB")
    assert answer.status == 202
    assert ok >= count * 0.999  # a word may be cut in two between the pieces
    assert size > 80 * count
    assert site.queue("orders")["waiting"] == count
    assert grown < BUDGET + PER_ITEM * count + AROUND
