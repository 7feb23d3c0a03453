"""What is written into headers is what is read from them, by this release and by others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.brokers import wire
from forebay.brokers.api import Attempt, Death, Failure
from forebay.errors import MessageDecodeError
from forebay.message import Message

TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)

MESSAGES = st.builds(
    Message,
    id=st.uuids().map(str),
    body=st.binary(max_size=50),
    accepted_at=TIMES,
    key=st.none() | st.text(),
    headers=st.dictionaries(NAMES, st.text()),
    content_type=st.text(min_size=1),
    not_before=st.none() | TIMES,
    expires_at=st.none() | TIMES,
)
ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1, 1000),
    failed_at=TIMES,
    worker=st.text(),
    seconds=st.floats(0, 1e6).map(lambda s: round(s, 6)),
    error_class=st.text(),
    reason=st.text(),
)
HISTORIES = st.lists(ATTEMPTS, max_size=5).map(tuple)
DEATHS = st.builds(
    Death,
    failure=st.builds(
        Failure, reason=st.text(), error_class=st.text(), destination=st.text(), detail=st.text()
    ),
    queue=NAMES,
    attempts=st.integers(1, 1000),
    died_at=TIMES,
    original_id=st.none() | st.uuids().map(str),
    history=HISTORIES,
)


@given(MESSAGES, st.integers(1, 1000), st.integers(0, 1000), st.none() | DEATHS, HISTORIES)
def test_a_message_comes_back_as_it_was_sent(
    message: Message, attempt: int, deferrals: int, death: Death | None, history: tuple[Attempt, ...]
) -> None:
    headers = wire.encode(message, attempt=attempt, deferrals=deferrals, death=death, history=history)

    decoded = wire.decode(headers, message.body)

    assert decoded == wire.Decoded(
        message=message, attempt=attempt, deferrals=deferrals, death=death, history=history
    )


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_to_the_microsecond(when: datetime) -> None:
    assert wire.from_micros(wire.to_micros(when)) == when


def test_a_header_of_a_later_release_is_not_taken_for_the_producers() -> None:
    message = Message(id="a", body=b"", accepted_at=datetime.now(UTC), headers={"tenant": "x"})
    headers = wire.encode(message) | {"forebay-v": "7", "forebay-lane": "3"}

    assert wire.decode(headers, b"").message.headers == {"tenant": "x"}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"forebay-id": "a"},
        {"forebay-id": "a", "forebay-accepted-at": "yesterday"},
        {"forebay-id": "a", "forebay-accepted-at": "9" * 30},
        {"forebay-id": "a", "forebay-accepted-at": "1", "forebay-attempt": "two"},
    ],
)
def test_what_is_not_ours_is_a_decode_error(broken: dict[str, str]) -> None:
    with pytest.raises(MessageDecodeError):
        wire.decode(broken, b"")


def test_a_long_detail_is_cut_so_that_headers_fit_the_brokers_frame() -> None:
    failure = Failure(reason="r", error_class="c", detail="x" * 10_000)
    death = Death(failure=failure, queue="q", attempts=1, died_at=datetime.now(UTC) + timedelta(0))

    assert len(wire.encode_death(death)[wire.DEAD_DETAIL]) == wire.MAX_DETAIL


@pytest.mark.parametrize(
    "text",
    ["", "x", "{}", "[]", "[2,[1]]", "[1,[1]]", '[1,["a","b","c","d","e","f"]]', "[1,7]", "null", "[NaN]"],
)
def test_a_history_that_cannot_be_read_is_none(text: str) -> None:
    """Of a later release, or somebody else's: the message is worth no less for it."""
    headers = wire.encode(Message(id="a", body=b"", accepted_at=datetime(2026, 1, 1, tzinfo=UTC)))

    assert wire.decode(headers | {wire.HISTORY: text}, b"").history == ()


def test_half_a_surrogate_pair_in_a_reason_is_written_all_the_same() -> None:
    attempt = Attempt(
        number=1,
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
        worker="host:1",
        seconds=0.5,
        error_class="ValueError",
        reason="bad \ud800",
    )

    [read] = wire.decode_history(wire.encode_history([attempt]))

    assert (read.reason, read.number) == ("bad ?", 1)


@given(st.none() | DEATHS, HISTORIES)
def test_a_lighter_copy_says_less_each_time_and_never_another_message(
    death: Death | None, history: tuple[Attempt, ...]
) -> None:
    message = Message(id="a", body=b"b", accepted_at=datetime(2026, 1, 1, tzinfo=UTC), key="k")

    versions = [wire.encode(message, death=d, history=h) for d, h in wire.lighter(death, history)]

    assert versions[0] == wire.encode(message, death=death, history=history)
    sizes = [sum(len(value) for value in headers.values()) for headers in versions]
    assert sizes == sorted(sizes, reverse=True)
    last = wire.decode(versions[-1], b"b")
    assert (last.message, last.history) == (message, ())
    if death is not None:
        assert last.death is not None
        assert (last.death.queue, last.death.died_at) == (death.queue, death.died_at)
        assert last.death.failure.reason == death.failure.reason[:60]
