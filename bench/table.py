"""
The README's table of benchmarks, and the plots in docs/plots, out of the newest rows in bench/results.

    python -m bench.table          writes both
    python -m bench.table --check  fails if the README's table is not what the rows say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.report import RESULTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PLOTS = ROOT / "docs" / "plots"
BEGIN = "<!-- bench: written by `python -m bench.table`, from bench/results -->"
END = "<!-- /bench -->"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: one figure, or the same of several brokers."""

    what: str
    against: str
    part: str
    targets: tuple[str, ...]
    """Their names in the rows; `*` for what differs from row to row."""


_NOOP = "a bare ASGI application on the same uvicorn that reads the body and answers 202"
_ROWS = "a bare ASGI request on uvicorn that does nothing"

LINES = (
    Line(
        "CPU per message, one per POST, to a durable 202: embedded queue",
        _NOOP,
        "ingest",
        ("embedded: CPU / bare ASGI no-op",),
    ),
    Line(
        "the same on RabbitMQ (quorum queue, confirmed) / Kafka (acks=all)",
        _NOOP,
        "ingest_brokers",
        ("RabbitMQ: CPU / bare ASGI no-op", "Kafka: CPU / bare ASGI no-op"),
    ),
    Line(
        "the same",
        "the same endpoint with FastAPI and FastStream, as durable",
        "ingest_brokers",
        ("RabbitMQ: CPU / FastAPI and FastStream", "Kafka: CPU / FastAPI and FastStream"),
    ),
    Line(
        "with API key, quota and idempotency key: embedded queue",
        _NOOP,
        "keys",
        ("key, quota and idempotency: CPU / bare ASGI no-op",),
    ),
    Line(
        "p99 at half load: embedded / RabbitMQ / Kafka",
        "that of the same no-op + 1.5 × that of the client library alone",
        "ingest_brokers",
        tuple(
            f"{broker}: p99 at half load / (the no-op's + 1.5 x the client library's)"
            for broker in ("embedded", "RabbitMQ", "Kafka")
        ),
    ),
    Line(
        "CPU per message with 2 workers: embedded / RabbitMQ / Kafka",
        "with one",
        "workers",
        tuple(f"{b}: CPU with 2 workers / with one" for b in ("embedded", "RabbitMQ", "Kafka")),
    ),
    Line(
        "the same with 4 workers",
        "with one",
        "workers",
        tuple(f"{b}: CPU with 4 workers / with one" for b in ("embedded", "RabbitMQ", "Kafka")),
    ),
    Line(
        "messages per second of two workers, each held to 0.3 core",
        "one so held",
        "workers",
        tuple(f"{b}: rate of two workers, held / of one" for b in ("embedded", "RabbitMQ", "Kafka")),
    ),
    Line(
        "CPU per message in a batch of 1,000 lines: embedded / RabbitMQ / Kafka",
        _NOOP,
        "batch",
        tuple(f"{b}: CPU per message / bare ASGI" for b in ("embedded", "RabbitMQ", "Kafka")),
    ),
    Line(
        "CPU per message, published in batches of 100 on RabbitMQ / Kafka",
        "the leanest loop with pika / aiokafka, same key and headers",
        "publish",
        tuple(f"{b}, 500 bytes: CPU / the client library's leanest loop" for b in ("RabbitMQ", "Kafka")),
    ),
    Line(
        "CPU per row, from RabbitMQ into PostgreSQL's default table",
        _ROWS,
        "consume",
        ("CPU per row / bare ASGI request",),
    ),
    Line(
        "`Sink.write` into PostgreSQL / MariaDB / SQLite, messages per second",
        "bare loops with the same idempotent insert, made beforehand",
        "sink_write",
        tuple(
            f"{database}: rate, store / bare, ids made by the gateway"
            for database in ("postgresql", "mariadb", "sqlite")
        ),
    ),
    Line(
        "CPU per row, drained into PostgreSQL's default table: embedded / Kafka / RabbitMQ",
        _NOOP,
        "drain",
        tuple(f"{b}: CPU per row / bare ASGI request" for b in ("embedded", "kafka", "rabbitmq")),
    ),
    Line(
        "the same, in rows per second",
        "the bare array insert, from memory",
        "drain",
        tuple(f"{b}: rate / bare loop" for b in ("embedded", "kafka", "rabbitmq")),
    ),
    Line(
        "CPU per message, published and taken, 10,000,000 waiting: embedded / Kafka / RabbitMQ (3,000,000)",
        "with 10,000 waiting",
        "backlog",
        (
            "embedded: CPU per message, 10000000 / 10000 waiting",
            "kafka: CPU per message, 10000000 / 10000 waiting",
            "rabbitmq: CPU per message, 3000000 / 10000 waiting",
        ),
    ),
    Line(
        "CPU of the gateway per message, with millions waiting: embedded / RabbitMQ / Kafka",
        "with 10,000 waiting",
        "gateway_backlog",
        tuple(
            f"{b}: CPU with many / few waiting, without idempotency keys"
            for b in ("embedded", "RabbitMQ", "Kafka")
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars, one for each figure that the rows have."""

    name: str
    title: str
    unit: str
    bars: tuple[tuple[str, str, str, str], ...]
    """What to write beside it, the part, the name of the figure, the field."""


PLOT_LIST = (
    Plot(
        "accept",
        "CPU per request: one message per POST, 64 connections, durable before the 202",
        "µs",
        (
            ("bare ASGI, stores nothing", "ingest_brokers", "bare ASGI no-op", "cpu_us_per_message"),
            ("Forebay, embedded queue", "ingest", "embedded, without idempotency keys", "cpu_us_per_message"),
            ("Forebay on RabbitMQ", "ingest_brokers", "RabbitMQ", "cpu_us_per_message"),
            ("Forebay on Kafka", "ingest_brokers", "Kafka", "cpu_us_per_message"),
            (
                "FastAPI route, stores nothing",
                "ingest_brokers",
                "FastAPI route that stores nothing",
                "cpu_us_per_message",
            ),
            (
                "FastAPI + FastStream on Kafka",
                "ingest_brokers",
                "FastAPI and FastStream on Kafka",
                "cpu_us_per_message",
            ),
            (
                "FastAPI + FastStream on RabbitMQ",
                "ingest_brokers",
                "FastAPI and FastStream on RabbitMQ",
                "cpu_us_per_message",
            ),
        ),
    ),
    Plot(
        "drain",
        "CPU per row: from RabbitMQ into PostgreSQL",
        "µs",
        (
            ("Forebay", "consume", "forebay consume", "cpu_us_per_row"),
            ("Celery", "consume", "Celery", "cpu_us_per_row"),
            ("FastStream", "consume", "FastStream", "cpu_us_per_row"),
        ),
    ),
)


def rows_of(part: str) -> list[Row]:
    """The newest first."""
    file = RESULTS / f"{part}.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in reversed(file.read_text().splitlines()) if line]


# ---- the table


def table() -> str:
    """Without the lines that no row has figures for yet."""
    lines = [
        "| What | Compared with | Ratio | We want | Measured |",
        "|---|---|---|---|---|",
    ]
    for line in LINES:
        cells = _cells(line)
        if cells is not None:
            lines.append("| " + " | ".join((line.what, line.against, *cells)) + " |")
    return "\n".join(lines)


def _cells(line: Line) -> tuple[str, str, str] | None:
    """The ratios, what we want them to be, and when and by which command they were measured."""
    found: list[tuple[Row, dict[str, Any]]] = []
    for name in line.targets:
        # The embedded queue has a part of its own for what the others are measured in together.
        parts = (line.part, "ingest") if name.startswith("embedded") else (line.part,)
        seen = (
            (row, target)
            for part in parts
            for row in rows_of(part)
            for told, target in row["targets"].items()
            if fnmatchcase(told, name)
        )
        newest = next(seen, None)
        if newest is None:
            return None
        found.append(newest)
    ratios = " / ".join(_ratio(target) for _, target in found)
    bounds = []
    for _, target in found:
        bound = f"{'≤' if target['at_most'] else '≥'} {target['bound']:.3g}"
        if bound not in bounds:
            bounds.append(bound)
    row = found[-1][0]
    return ratios, " / ".join(bounds), f"{row['date'][:10]}, `{row['command']}`"


def _ratio(target: dict[str, Any]) -> str:
    """One that is not what we want is told by its type."""
    text = f"{target['value']:.2f}"
    return text if target["met"] else f"**{text}**"


def written(readme: str, block: str) -> str:
    """
    Raises:
        SystemExit: the README has no place for it.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


# ---- the plots

_WIDTH, _LABEL, _BAR, _STEP, _TOP = 760, 250, 20, 30, 44
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.ours{fill:#1f6f8b}.other{fill:#b9c3cc}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.other{fill:#59636e}.ours{fill:#4fb3d1}}"
)


def svg(title: str, unit: str, bars: Sequence[tuple[str, float]]) -> str:
    most = max(value for _, value in bars)
    height = _TOP + _STEP * len(bars) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img"><title>{title}</title><style>{_STYLE}</style>',
        f'<text x="8" y="22" font-weight="600">{title}</text>',
    ]
    for number, (label, value) in enumerate(bars):
        y = _TOP + _STEP * number
        width = max(1.0, value / most * (_WIDTH - _LABEL - 90))
        whose = "ours" if label.startswith("Forebay") else "other"
        parts.append(
            f'<text x="{_LABEL - 10}" y="{y + 15}" text-anchor="end">{label}</text>'
            f'<rect class="{whose}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
            f'<text x="{_LABEL + width + 8:.1f}" y="{y + 15}">{value:.3g} {unit}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def bars_of(plot: Plot) -> list[tuple[str, float]]:
    """Of the newest row that has the figure."""
    bars = []
    for label, part, figure, field in plot.bars:
        for row in rows_of(part):
            found = row["figures"].get(figure)
            if isinstance(found, dict) and field in found:
                bars.append((label, float(found[field])))
                break
    return bars


def main(arguments: Sequence[str]) -> int:
    before = README.read_text()
    after = written(before, table())
    if "--check" in arguments:
        if before != after:
            print("README.md: the table is not what the rows say; run `python -m bench.table`")
        return int(before != after)
    README.write_text(after)
    PLOTS.mkdir(parents=True, exist_ok=True)
    for plot in PLOT_LIST:
        if bars := bars_of(plot):
            (PLOTS / f"{plot.name}.svg").write_text(svg(plot.title, plot.unit, bars))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
