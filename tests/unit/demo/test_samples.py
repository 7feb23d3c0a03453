"""What the demo makes of what it has seen."""

from __future__ import annotations

import csv
from pathlib import Path

from forebay.demo.connection import NOT_SENT, TIMED_OUT
from forebay.demo.load import Outcomes, Tick
from forebay.demo.samples import Point, Sample, points, side_of, write_csv


def outcomes(*ended: tuple[float, float, int]) -> Outcomes:
    made = Outcomes()
    for due, took, status in ended:
        made.add(due, took, status)
    return made


def sample(at: float, accepted: int, stored: int, dead: int = 0) -> Sample:
    tick = Tick(at, accepted, accepted, 0, 0.0, 0.001, 0.004)
    return Sample(at, accepted, stored, dead, tick, Tick(at, 10, 8, 2, 3.5, None, None))


def test_a_side_is_counted_by_how_its_requests_ended() -> None:
    side = side_of(
        outcomes((0, 0.1, 202), (1, 0.3, 201), (2, 0.1, 500), (3, 30, TIMED_OUT), (4, 0, NOT_SENT))
    )

    assert (side.sent, side.accepted, side.failed) == (5, 2, 3)
    assert (side.refused, side.timed_out, side.no_answer, side.not_sent) == (1, 1, 0, 1)
    assert (side.p50, side.slowest) == (0.1, 0.3)


def test_a_point_is_about_the_requests_that_were_due_in_its_time_whenever_they_ended() -> None:
    found = points(outcomes((0.1, 29.0, 202), (0.2, 0.5, 202), (1.2, 0.01, 500)), seconds=2)

    assert found == [Point(0.25, 0.5, 29.0, 2, 0), Point(1.25, None, None, 0, 1)]


def test_what_is_accepted_and_neither_stored_nor_dead_waits() -> None:
    assert sample(1.0, accepted=10, stored=6, dead=1).waiting == 3


def test_the_csv_has_a_line_for_each_sample(tmp_path: Path) -> None:
    write_csv(tmp_path / "demo.csv", [sample(0.25, 10, 6), sample(0.5, 20, 20)])

    with (tmp_path / "demo.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["seconds"], first["waiting"], first["p99_ms"], first["direct_p99_ms"]) == (
        "0.25",
        "4",
        "4.0",
        "",
    )
    assert (second["accepted"], second["stored"], second["direct_oldest_s"]) == ("20", "20", "3.5")
