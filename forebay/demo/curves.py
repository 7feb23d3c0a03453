"""The picture at the end: what was accepted and stored, and how long senders waited, on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from forebay.demo.play import Result
from forebay.demo.samples import BUCKET, Point, Sample, points

INK, PALE, PAPER = "#1f2933", "#7b8794", "#ffffff"
OURS, STORED, DIRECT, BAD = "#0b6fb8", "#2f9e6e", "#d9730d", "#c92a2a"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#cbd2d9",
    "axes.labelcolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}

_TICKS = {0.001: "1 ms", 0.01: "10 ms", 0.1: "100 ms", 1.0: "1 s", 10.0: "10 s", 30.0: "30 s"}


def draw(path: Path, result: Result, samples: Sequence[Sample]) -> None:
    """Write the picture as a PNG of 1,280 by 800 pixels, on white so that dark pages can show it, too."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 5), dpi=160, facecolor=PAPER)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            2, 1, height_ratios=(1.35, 1), hspace=0.14, left=0.085, right=0.835, top=0.80, bottom=0.075
        )
        end = max(result.seconds, samples[-1].at if samples else 0.0)
        above, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        for axes in (above, below):
            axes.set_xlim(0, end)
            _shade(axes, result, end)
        _amounts(above, result, samples)
        _waits(below, result)
        _names(above, result, end)
        _title(figure, result)
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _shade(axes: Any, result: Result, end: float) -> None:
    """The times in which something was away."""
    at = {mark.name: mark.at for mark in result.marks}
    for what, color in (("database", "#fff1e0"), ("broker", "#fde3df")):
        begin = next(
            (moment for name, moment in at.items() if name.startswith(what) and "back" not in name), None
        )
        if begin is not None:
            axes.axvspan(begin, at.get(f"{what} back", end), color=color, lw=0, zorder=0)
    axes.axvline(result.seconds, color="#cbd2d9", lw=0.8, ls=(0, (2, 2)), zorder=1)


def _amounts(axes: Any, result: Result, samples: Sequence[Sample]) -> None:
    at = [s.at for s in samples]
    accepted = [s.accepted for s in samples]
    stored = [s.stored for s in samples]
    direct = [s.direct.accepted for s in samples]
    axes.fill_between(at, stored, accepted, color=OURS, alpha=0.10, lw=0)
    axes.plot(at, direct, color=DIRECT, lw=1.8)
    axes.plot(at, stored, color=STORED, lw=1.8)
    axes.plot(at, accepted, color=OURS, lw=2.2)
    axes.set_ylim(0, max(accepted[-1], 1) * 1.06)
    axes.set_ylabel("orders")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.tick_params(axis="y", length=0)


def _waits(axes: Any, result: Result) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.0008, 75)
    axes.yaxis.set_major_locator(FixedLocator(list(_TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: _TICKS[min(_TICKS, key=lambda t: abs(t - value))])
    )
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel("senders wait")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    for outcomes, color in ((result.direct_outcomes, DIRECT), (result.outcomes, OURS)):
        found = points(outcomes, result.seconds)
        _band(axes, found, color)
        failed = [point.at for point in found if point.failed]
        # Above all that can be waited: a failed order has no latency.
        axes.plot(failed, [50.0] * len(failed), ls="", marker="x", ms=3.2, mew=0.9, color=BAD, zorder=4)


def _band(axes: Any, found: Sequence[Point], color: str) -> None:
    """From the median to the slowest of a hundred; broken where nothing was accepted."""
    at: list[float] = []
    low: list[float] = []
    high: list[float] = []
    before = 0.0
    for point in found:
        if point.p50 is None or point.p99 is None:
            continue
        if at and point.at - before > BUCKET * 1.5:
            at.append((point.at + before) / 2)
            low.append(float("nan"))
            high.append(float("nan"))
        at.append(point.at)
        low.append(point.p50)
        high.append(point.p99)
        before = point.at
    axes.fill_between(at, low, high, color=color, alpha=0.22, lw=0)
    axes.plot(at, high, color=color, lw=1.4)
    axes.plot(at, low, color=color, lw=0.7, alpha=0.7)


def _names(axes: Any, result: Result, end: float) -> None:
    """What happens, above the picture at its time."""
    top = axes.get_ylim()[1]
    for mark in result.marks:
        if mark.name in ("database back", "broker back"):
            continue
        axes.annotate(
            mark.name, (mark.at, top), xytext=(3, 4), textcoords="offset points", fontsize=8.5, color=INK,
            ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
        axes.plot([mark.at, mark.at], [top, top * 1.05], color=PALE, lw=0.8, clip_on=False)


def _title(figure: Figure, result: Result) -> None:
    ledger, direct = result.ledger, result.direct
    figure.text(0.085, 0.945, "The database dies, then the broker. Nobody is refused, nothing is lost.",
                fontsize=13.5, fontweight="bold", va="center")  # fmt: skip
    figure.text(
        0.085, 0.895,
        f"{result.rate:g} orders/s to each side. Forebay: {ledger.accepted:,} accepted ="
        f" {ledger.stored:,} stored + {ledger.dead:,} poison. Directly into the database:"
        f" {direct.failed:,} of {direct.sent:,} failed.",
        fontsize=9, color=PALE, va="center",
    )  # fmt: skip
