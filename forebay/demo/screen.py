"""The picture in the terminal while the demo runs; plain lines where there is none."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forebay.demo.play import Play
from forebay.demo.samples import Sample
from forebay.demo.story import Phase

OURS, DIRECT, BAD = "cyan", "yellow", "red"

_BARS = "▁▂▃▄▅▆▇█"
_FASTEST, _SLOWEST = 0.001, 30.0
"""The seconds at both ends of a latency curve, which is logarithmic."""


class Screen(Protocol):
    def show(self, play: Play, samples: Sequence[Sample]) -> None:
        """How it stands: the last of the samples is now."""
        ...


@contextmanager
def screen_for(terminal: bool) -> Iterator[Screen]:
    """A live picture, or lines, on stderr: stdout is for the result."""
    if not terminal:
        yield Lines()
        return
    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield Picture(live)


class Lines:
    """One line when something happens, and one every five seconds."""

    def __init__(self) -> None:
        self._said = ""
        self._next = 0.0

    def show(self, play: Play, samples: Sequence[Sample]) -> None:
        if play.sentence != self._said:
            self._said = play.sentence
            print(play.sentence, file=sys.stderr, flush=True)
        if samples and samples[-1].at >= self._next:
            s = samples[-1]
            self._next = max(self._next, s.at // 5 * 5) + 5
            direct = s.direct
            print(
                f"{s.at:5.1f} s  accepted {s.accepted:,}  waiting {s.waiting:,}  stored {s.stored:,}"
                f"  dead {s.dead:,}  p99 {_seconds(s.forebay.p99)}  |  direct: accepted {direct.accepted:,}"
                f"  failed {direct.failed:,}  p99 {_seconds(direct.p99)}  oldest {_seconds(direct.oldest)}",
                file=sys.stderr, flush=True,
            )  # fmt: skip


class Picture:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, play: Play, samples: Sequence[Sample]) -> None:
        width = max(40, min(self._live.console.width, 110))
        self._live.update(
            picture(play.sentence, play.phases, play.phase, samples, play.seconds, width), refresh=True
        )


def picture(
    sentence: str,
    phases: Sequence[Phase],
    phase: Phase | None,
    samples: Sequence[Sample],
    seconds: float,
    width: int,
) -> RenderableType:
    """Everything that one sees at one moment."""
    parts: list[RenderableType] = [_steps(phases, phase), Text(sentence, style="bold"), Text()]
    if samples:
        parts += [_figures(samples[-1]), Text(), *_curves(samples, seconds, width)]
    return Group(*parts)


def _steps(phases: Sequence[Phase], now: Phase | None) -> Text:
    reached = phases.index(now) if now is not None else -1
    line = Text()
    for number, phase in enumerate(phases):
        dot, style = (
            ("●", "bold") if number == reached else ("✓", "dim") if number < reached else ("○", "dim")
        )
        line.append(f"{dot} {phase.name}  ", style)
    return line


def _figures(s: Sample) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "accepted", "waiting", "stored", "dead", "failed", "p50", "p99", "oldest"):
        table.add_column(name, justify="left" if not name else "right", header_style="dim", no_wrap=True)
    ours, direct = s.forebay, s.direct
    table.add_row(
        Text("Forebay", OURS), f"{s.accepted:,}", f"{s.waiting:,}", f"{s.stored:,}", f"{s.dead:,}",
        _bad(ours.failed), _seconds(ours.p50), _seconds(ours.p99), _seconds(ours.oldest),
    )  # fmt: skip
    table.add_row(
        Text("direct", DIRECT), f"{direct.accepted:,}", "–", f"{direct.accepted:,}", "–",
        _bad(direct.failed), _seconds(direct.p50), _seconds(direct.p99), _seconds(direct.oldest),
    )  # fmt: skip
    return table


def _bad(count: int) -> Text:
    return Text(f"{count:,}", BAD if count else "")


def _curves(samples: Sequence[Sample], seconds: float, width: int) -> list[Text]:
    """A column for each slice of the whole time; what is to come is empty."""
    label = 22
    columns = width - label
    slices: list[list[Sample]] = [[] for _ in range(columns)]
    for s in samples:
        slices[min(columns - 1, max(0, int(s.at / seconds * columns)))].append(s)
    for number in range(1, max(n for n, column in enumerate(slices) if column)):
        # More columns than samples.
        slices[number] = slices[number] or slices[number - 1]
    most = max(1, max(s.waiting for s in samples))
    lines = []
    for name, style, bars in (
        (
            f"waiting (to {most:,})",
            OURS,
            [_share(max(s.waiting for s in c) / most) if c else " " for c in slices],
        ),
        ("latency, Forebay", OURS, [_worst([s.forebay.p99 for s in c]) for c in slices]),
        ("latency, direct", DIRECT, _direct(slices)),
    ):
        line = Text(f"{name:<{label}}", "dim")
        for bar in bars:
            line.append(bar, BAD if bar == "×" else style)
        lines.append(line)
    lines.append(Text(f"{'':<{label}}p99, log scale from 1 ms to 30 s; × nothing accepted", "dim"))
    return lines


def _direct(slices: Sequence[Sequence[Sample]]) -> list[str]:
    """The latency where something was accepted, × where orders failed or wait for long instead."""
    bars = []
    before: Sample | None = None
    for column in slices:
        if not column:
            bars.append(" ")
            continue
        last = column[-1]
        none = before is not None and last.direct.accepted == before.direct.accepted
        failing = before is not None and last.direct.failed > before.direct.failed
        bars.append("×" if none and (failing or last.direct.oldest > 1) else _worst(_p99s(column)))
        before = last
    return bars


def _p99s(column: Sequence[Sample]) -> list[float | None]:
    return [s.direct.p99 for s in column]


def _worst(latencies: Sequence[float | None]) -> str:
    there = [latency for latency in latencies if latency is not None]
    if not there:
        return " "
    span = math.log(_SLOWEST / _FASTEST)
    return _share(math.log(max(max(there), _FASTEST) / _FASTEST) / span)


def _share(share: float) -> str:
    return _BARS[min(len(_BARS) - 1, int(share * len(_BARS)))]


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
