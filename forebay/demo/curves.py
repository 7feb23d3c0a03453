"""The picture at the end: what was accepted and stored, and how long senders waited, on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

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

_TICKS = {0.001: "1 ms", 0.01: "10 ms", 0.1: "100 ms", 1.0: "1 s", 10.0: "10 s"}

_FAILED_AT = 45.0
"""Where failed orders are marked, in seconds: above all that a sender waits for."""


def draw(path: Path, result: Result, samples: Sequence[Sample]) -> None:
    """Write the picture as a PNG of 1,360 by 850 pixels, on white so that dark pages can show it, too."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 5.3125), dpi=160, facecolor=PAPER)
        canvas = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            2, 1, height_ratios=(1.45, 1), hspace=0.2, left=0.075, right=0.985, top=0.785, bottom=0.06
        )
        samples = _to_the_end(result, samples)
        end = max(result.seconds, samples[-1].at)
        above, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        for axes in (above, below):
            axes.set_xlim(0, end)
            axes.tick_params(axis="both", length=0)
            _shade(axes, result, end)
        _amounts(above, result, samples)
        _waits(below, result)
        _names(above, result)
        _title(figure, result)
        canvas.draw()
        # The few colours there are: a third of the bytes.
        picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
        picture.quantize(96).save(path, optimize=True)


def _to_the_end(result: Result, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Without what comes after all is where it belongs, but for a moment of it."""
    moving = [s.at for s in samples if s.waiting or s.direct.oldest or s.at < result.seconds]
    return [s for s in samples if s.at <= moving[-1] + 2]


def _shade(axes: Any, result: Result, end: float) -> None:
    """The times in which something was away."""
    for what, color in (("database", "#fff1e0"), ("broker", "#fbdcd6")):
        away = _moment(result, what, end)
        axes.axvspan(away, _moment(result, f"{what} back", end), color=color, lw=0, zorder=0)
    axes.axvline(result.seconds, color=PALE, lw=0.8, ls=(0, (2, 2)), zorder=1)


def _moment(result: Result, name: str, otherwise: float) -> float:
    """When the first thing happened whose name begins like this."""
    return next((mark.at for mark in result.marks if mark.name.startswith(name)), otherwise)


def _amounts(axes: Any, result: Result, samples: Sequence[Sample]) -> None:
    at = [s.at for s in samples]
    accepted = [s.accepted for s in samples]
    stored = [s.stored for s in samples]
    direct = [s.direct.accepted for s in samples]
    axes.fill_between(at, stored, accepted, color=OURS, alpha=0.10, lw=0)
    axes.plot(at, accepted, color=OURS, lw=2.2, zorder=4, label="accepted by Forebay")
    axes.plot(at, stored, color=STORED, lw=1.8, zorder=3, label="stored by Forebay")
    axes.plot(at, direct, color=DIRECT, lw=1.8, label="accepted by the direct endpoint, and stored")
    axes.set_ylim(0, max(accepted[-1], 1) * 1.06)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelbottom=False)
    axes.set_title("orders", loc="left", fontsize=8.5, color=PALE, pad=3, x=-0.07)
    axes.legend(
        loc="upper left", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, handlelength=1.4
    )
    most = max(samples, key=lambda s: s.waiting)
    _say(axes, most.at, most.stored + most.waiting * 0.6, "waiting, and safe  ", OURS, ha="right")


def _say(axes: Any, x: float, y: float, text: str, color: str, *, ha: str = "left") -> None:
    axes.text(x, y, text, color=color, ha=ha, va="center", fontsize=9)


def _waits(axes: Any, result: Result) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.0008, 120)
    axes.yaxis.set_major_locator(FixedLocator(list(_TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels(_TICKS.values())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.set_title(
        "how long a sender waits (the median and the slowest of 100)",
        loc="left", fontsize=8.5, color=PALE, pad=3, x=-0.07,
    )  # fmt: skip
    for outcomes, color in ((result.direct_outcomes, DIRECT), (result.outcomes, OURS)):
        found = points(outcomes, result.seconds)
        _band(axes, found, color)
        failed = [point.at for point in found if point.failed]
        axes.plot(failed, [_FAILED_AT] * len(failed), ls="", marker="x", ms=3.2, mew=0.9, color=BAD, zorder=4)
        if failed:
            who = "the direct endpoint" if color == DIRECT else "Forebay"
            _say(axes, failed[-1] + 1, _FAILED_AT, f"orders that {who} failed", BAD)


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


def _names(axes: Any, result: Result) -> None:
    """What happens, above the picture at its time."""
    top = axes.get_ylim()[1]
    happens = [mark for mark in result.marks if mark.at > 0 and not mark.name.endswith(" back")]
    for mark in happens:
        axes.plot([mark.at, mark.at], [0, top * 1.05], color=PALE, lw=0.7, clip_on=False, zorder=1)
        _name(axes, mark.at, top, mark.name, "left")
    _name(axes, result.seconds, top, "load ends", "right")


def _name(axes: Any, at: float, top: float, name: str, side: str) -> None:
    axes.annotate(
        name, (at, top), xytext=(3 if side == "left" else -3, 3), textcoords="offset points",
        fontsize=8.5, color=INK, ha=side, va="bottom", annotation_clip=False,
    )  # fmt: skip


def _title(figure: Figure, result: Result) -> None:
    ledger, direct = result.ledger, result.direct
    figure.text(
        0.015, 0.955, "The database dies, the broker dies: nobody is refused, nothing is lost",
        fontsize=13.5, fontweight="bold", va="center",
    )  # fmt: skip
    figure.text(
        0.015, 0.89,
        f"Through Forebay: {ledger.accepted:,} accepted = {ledger.stored:,} stored"
        f" + {ledger.waiting:,} waiting + {ledger.dead:,} dead (the poison message); {ledger.lost:,} lost.\n"
        f"An endpoint that writes to {result.parts.database.label} itself:"
        f" {direct.failed:,} of {direct.sent:,} failed.  {result.rate:g} orders a second to each side.",
        fontsize=9, color=PALE, va="center", linespacing=1.45,
    )  # fmt: skip
