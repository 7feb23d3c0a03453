"""The README's table of benchmarks is written from the rows, and nothing else of the page is touched."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import table


def row(part: str, date: str, **targets: float) -> str:
    told = {name: {"value": v, "bound": 1.0, "at_most": True, "met": v <= 1} for name, v in targets.items()}
    return json.dumps({"date": date, "command": f"make bench ONLY={part}", "targets": told, "figures": {}})


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "LINES", (table.Line("CPU", "a no-op", "part", ("one", "other *")),))
    return tmp_path


def test_a_line_has_the_newest_figures_and_shows_which_are_not_what_we_want(results: Path) -> None:
    rows = [
        row("part", "2026-01-01", one=0.5, **{"other 1": 0.6}),
        row("part", "2026-02-01", **{"other 2": 1.25}),
    ]
    (results / "part.jsonl").write_text("\n".join(rows))
    line = table.table().splitlines()[-1]
    assert line == "| CPU | a no-op | 0.50 / **1.25** | ≤ 1 | 2026-02-01, `make bench ONLY=part` |"


def test_a_line_without_figures_is_left_out(results: Path) -> None:
    (results / "part.jsonl").write_text(row("part", "2026-01-01", one=0.5))
    assert "a no-op" not in table.table()


def test_only_what_is_between_the_marks_is_written() -> None:
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    assert table.written(page, "new") == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter"
    with pytest.raises(SystemExit, match=r"README\.md has no"):
        table.written("no marks", "new")


def test_a_plot_has_a_bar_for_each_figure() -> None:
    drawn = ElementTree.fromstring(table.svg("A title", "µs", [("Forebay", 10.0), ("other", 40.0)]))
    bars = [element for element in drawn.iter() if element.tag.endswith("rect")]
    assert [bar.get("class") for bar in bars] == ["ours", "other"]
    assert float(bars[1].get("width") or 0) == pytest.approx(4 * float(bars[0].get("width") or 0), rel=0.01)
