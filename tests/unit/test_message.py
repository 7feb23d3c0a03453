"""Messages that are published together are columns only where nothing of them gets lost by that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from forebay.message import Alike, Message, bodies_of, ids_of, together

START = datetime(2026, 1, 1, tzinfo=UTC)

TIMES = st.none() | st.just(START + timedelta(hours=1))
MESSAGES = st.lists(
    st.builds(
        Message,
        id=st.text(max_size=3),
        body=st.binary(max_size=3),
        accepted_at=st.integers(0, 3).map(lambda n: START + timedelta(microseconds=n)),
        key=st.sampled_from([None, "", "a"]),
        headers=st.sampled_from([{}, {"a": "1"}, {"a": "2"}]),
        content_type=st.sampled_from(["text/plain", "application/json"]),
        not_before=TIMES,
        expires_at=TIMES,
    ),
    min_size=1,
    max_size=4,
)
"""Drawn so that many are alike."""


@given(MESSAGES)
def test_what_is_published_together_is_what_was_given_but_for_the_time(messages: list[Message]) -> None:
    before = [replace(m) for m in messages]
    last = messages[-1].accepted_at

    sent = together(messages)

    alike = all(
        replace(m, id="", body=b"", accepted_at=last)
        == Message(
            id="", body=b"", accepted_at=last, key=m.key, headers=m.headers, content_type=m.content_type
        )
        and (m.key, m.headers, m.content_type)
        == (before[-1].key, before[-1].headers, before[-1].content_type)
        for m in before
    )
    assert isinstance(sent, Alike) == alike
    assert list(sent) == ([replace(m, accepted_at=last) for m in before] if alike else before)
    assert list(ids_of(sent)) == [m.id for m in before]
    assert list(bodies_of(sent)) == [m.body for m in before]
    assert [*map(id, sent)] == [*map(id, messages)], "no second objects"


@given(MESSAGES, st.integers(0, 4), st.integers(0, 4))
def test_a_part_of_columns_is_a_part_of_the_messages(messages: list[Message], start: int, stop: int) -> None:
    sent = together([replace(m, not_before=None, expires_at=None, key=None) for m in messages])
    assert list(sent[start:stop]) == list(sent)[start:stop]
