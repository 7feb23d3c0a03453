"""The picture at the end, as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.cli.demo import _save
from forebay.demo.load import Outcomes
from forebay.demo.play import Ledger
from forebay.demo.samples import Mark, side_of
from tests.needs import missing_server
from tests.unit.demo.test_samples import sample
from tests.unit.demo.test_screen import BROKER, DATABASE


def result() -> Any:
    outcomes, direct = Outcomes(), Outcomes()
    for n in range(600):
        outcomes.add(n / 10, 0.005, 202)
        direct.add(n / 10, 0.005, 500 if 96 < n < 408 else 201)
    marks = [
        Mark(0.0, "steady load"), Mark(9.6, "database killed"), Mark(21.6, "broker killed, too"),
        Mark(33.6, "poison"), Mark(40.8, "all return"), Mark(41.5, "database back"),
        Mark(46.0, "broker back"),
    ]  # fmt: skip
    return SimpleNamespace(
        rate=10.0, seconds=60.0, ledger=Ledger(601, 600, 0, 1, 0, 0, 0), direct=side_of(direct),
        outcomes=outcomes, direct_outcomes=direct, marks=marks,
        parts=SimpleNamespace(database=DATABASE, broker=BROKER),
    )  # fmt: skip


SAMPLES = [sample(float(n), 10 * n, 10 * n if n < 10 or n > 48 else 100) for n in range(61)]


def test_the_curves_are_a_small_png(tmp_path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        missing_server("matplotlib is not installed: pip install 'forebay[demo]'")

    png, table = _save(result(), SAMPLES, tmp_path / "curves.png")

    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert png.stat().st_size < 150_000
    assert len(table.read_text().splitlines()) == len(SAMPLES) + 1


def test_without_matplotlib_the_figures_are_kept_and_the_way_to_a_picture_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "forebay.demo.curves", None)

    saved = _save(result(), SAMPLES, tmp_path / "curves.png")

    assert saved == [tmp_path / "curves.csv"]
    assert "pip install 'forebay[demo]'" in capsys.readouterr().err
