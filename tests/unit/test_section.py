"""Durations and sizes read as people write them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from forebay.brokers.naming import check_queue_name, dead_letter_queue, is_dead_letter_queue, origin_queue
from forebay.errors import SettingsError
from forebay.section import ByteCount, Seconds, Section


class Example(Section):
    delay: Seconds = 1.0
    size: ByteCount = 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("14d", 1_209_600), ("250ms", 0.25), (7, 7)],
)
def test_durations(text: object, seconds: float) -> None:
    assert Example.model_validate({"delay": text}).delay == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("900000", 900_000), ("900kB", 900_000), ("64MiB", 2**26), ("1 GB", 10**9), (5, 5)]
)
def test_sizes(text: object, size: int) -> None:
    assert Example.model_validate({"size": text}).size == size


@pytest.mark.parametrize(
    "values", [{"delay": "soon"}, {"delay": -1}, {"size": "64 buckets"}, {"size": -1}, {"dealy": 1}]
)
def test_what_is_neither_is_an_error(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(values)


@pytest.mark.parametrize("name", ["orders", "a", "0", "a-b-1", "x" * 63])
def test_queue_names(name: str) -> None:
    assert check_queue_name(name) == name
    assert is_dead_letter_queue(dead_letter_queue(name))
    assert origin_queue(dead_letter_queue(name)) == name


@pytest.mark.parametrize("name", ["", "Orders", "-a", "a.dead", "a_b", "x" * 64, "a\n", "ö", "a/b"])
def test_names_that_would_not_work_on_every_broker_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="is not allowed"):
        check_queue_name(name)
