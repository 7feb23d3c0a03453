"""A queue works at its hours, or every so often until it is empty."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from consumers.schedule import AT_LEAST, Schedule, parse_schedule


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-10T{text}").replace(tzinfo=UTC)


def schedule(text: str, zone: str = "UTC", started: str = "00:00:00") -> Schedule:
    return parse_schedule(text, zone, now=lambda: at(started))


@pytest.mark.parametrize(
    ("moment", "closed"),
    [
        ("00:00:00", 3_600),
        ("00:59:59", 1),
        ("01:00:00", 0),
        ("04:59:59", 0),
        ("05:00:00", 20 * 3_600),
        ("23:00:00", 2 * 3_600),
    ],
)
def test_hours_of_the_day(moment: str, closed: float) -> None:
    assert schedule("01:00-05:00").closed_for(at(moment)) == closed


@pytest.mark.parametrize(
    ("moment", "closed"),
    [
        ("21:00:00", 3_600),
        ("22:00:00", 0),
        ("23:59:59", 0),
        ("00:00:00", 0),
        ("05:59:59", 0),
        ("06:00:00", 6 * 3_600),
    ],
)
def test_hours_over_midnight_and_a_second_span(moment: str, closed: float) -> None:
    assert schedule("22:00-06:00, 12:00-13:00").closed_for(at(moment)) == closed


def test_the_hours_are_those_of_the_zone() -> None:
    # Berlin is at UTC+1 in March before the 29th.
    assert schedule("01:00-05:00", "Europe/Berlin").closed_for(at("00:30:00")) == 0
    assert schedule("01:00-05:00", "Europe/Berlin").words == "from 01:00 to 05:00 (Europe/Berlin)"


def test_just_before_it_opens_nobody_turns_in_circles() -> None:
    assert schedule("01:00-05:00").closed_for(at("00:59:59.999")) > 0.01


def test_a_cron_expression_opens_until_the_queue_is_empty() -> None:
    cron = schedule("*/10 * * * *", started="00:03:00")
    assert cron.closed_for(at("00:03:00")) == 7 * 60
    assert cron.closed_for(at("00:10:00")) == 0
    cron.found_empty(at("00:10:01"))
    assert cron.closed_for(at("00:10:01")) == 0, "a consumer that was away needs a moment"
    end = at("00:10:00") + timedelta(seconds=AT_LEAST)
    cron.found_empty(end)
    assert cron.closed_for(end) == pytest.approx(600 - AT_LEAST)
    assert cron.closed_for(at("00:20:00")) == 0


def test_a_cron_expression_that_drains_for_longer_than_its_period_goes_on() -> None:
    cron = schedule("*/10 * * * *")
    for minute in (10, 15, 20, 25, 30):
        assert cron.closed_for(at(f"00:{minute}:00")) == 0


@pytest.mark.parametrize(
    "text", ["25:00-26:00", "01:00-01:00", "01:00-05:00 daily", "every day", "* * *", "99 * * * *", ""]
)
def test_what_is_no_schedule_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"write hours|always open"):
        schedule(text)


def test_an_unknown_zone_says_so() -> None:
    with pytest.raises(ValueError, match="no time zone that this machine knows"):
        schedule("01:00-05:00", "Mars/Olympus")
