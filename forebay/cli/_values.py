"""Option values in words: durations and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import typer

from forebay.section import parse_duration


def seconds(text: str) -> float:
    """A duration as settings write it: 30, 30s, 15m, 2h, 14d."""
    try:
        return float(str(parse_duration(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def seconds_with_unit(text: str | float) -> float:
    """As `seconds`, for deleting: the unit must be said, since 90 was perhaps meant to be days."""
    if isinstance(text, float):
        return text  # The option's default.
    if text.strip().replace(".", "", 1).isdigit():
        raise typer.BadParameter(f"say the unit: {text}d for days, {text}s for seconds")
    return seconds(text)


def moment(text: str) -> datetime:
    """A time: ISO 8601 (UTC unless it says otherwise), or how long ago, as a duration."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=float(str(parse_duration(text))))
        except ValueError:
            raise typer.BadParameter(
                f'{text!r} is not a time; write 2026-01-31T12:00 (UTC), or how long ago: "15m", "2h", "14d"'
            ) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
