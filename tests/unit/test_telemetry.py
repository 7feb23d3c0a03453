"""Logging: lines for machines, few of them, nothing secret in tracebacks."""

from __future__ import annotations

import errno
import io
import json
import logging

import pytest
import structlog

from forebay import telemetry
from forebay.telemetry import RepeatLimit


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_without_a_terminal_each_event_is_one_line_of_json() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream)
    structlog.get_logger().info("queue declared", queue="orders")

    (line,) = lines(stream)
    assert (line["event"], line["queue"], line["level"]) == ("queue declared", "orders", "info")


def test_what_libraries_log_has_the_same_form() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream)
    logging.getLogger("uvicorn.error").warning("connection %s lost", 7)

    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("connection 7 lost", "uvicorn.error", "warning")


def test_a_traceback_stays_in_its_line_and_shows_no_values() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream)
    password = "pa" + "55word"
    try:
        raise ValueError(len(password))
    except ValueError:
        structlog.get_logger().exception("broken")

    (line,) = lines(stream)
    assert "Traceback" in str(line["exception"])
    assert password not in stream.getvalue()


@pytest.mark.parametrize("readable", [True, False])
def test_below_the_level_nothing_is_written(readable: bool) -> None:
    stream = io.StringIO()
    telemetry.configure("warning", stream=stream, json=not readable)
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    assert stream.getvalue() == ""


def test_a_repeated_error_is_let_through_a_few_times_and_then_counted() -> None:
    now = 0.0
    limit = RepeatLimit(burst=2, period=10, clock=lambda: now)
    seen = [limit.allows("error", "down") for _ in range(5)]
    now = 10.0

    assert seen == [0, 0, None, None, None]
    assert limit.allows("error", "down") == 3
    assert limit.allows("error", "down") == 0


def test_other_errors_are_not_left_out_with_it() -> None:
    limit = RepeatLimit(burst=1, clock=lambda: 0.0)
    assert [limit.allows("error", "down", q) for q in ("a", "a", "b")] == [0, None, 0]


def test_repeated_information_is_not_limited() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream)
    for _ in range(20):
        structlog.get_logger().info("retried")
        structlog.get_logger().warning("down")
    events = [line["event"] for line in lines(stream)]
    assert (events.count("retried"), events.count("down")) == (20, 5)


class FullDisk(io.StringIO):
    """Standard error in a file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    telemetry.configure(stream=FullDisk())

    structlog.get_logger().error("the disk is full")
