"""No body, key or header is poison to the `messages` table."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import ids
from forebay.sinks import WriteResult
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.rows import clean, headers_json, headers_jsons, holds_json, says_json
from tests.unit.storage.deliveries import delivery, stored, stored_body

any_text = st.text(st.characters(codec=None), max_size=20)  # lone surrogates and NUL too
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
any_body = (
    st.binary(max_size=60)
    | any_json.map(lambda value: json.dumps(value).encode())
    | any_json.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
)

AWKWARD = [
    b"",
    b"\x00",
    b'"\\u0000"',
    b'"\\\\u0000"',
    b'{"\\u0000": 1}',
    b'"\\ud800"',
    b'"\\ude00\\ud800"',
    b'"\xed\xa0\x80"',
    b'"\xff"',
    b"NaN",
    b"[Infinity, -Infinity]",
    b"1e400",
    b"1e-20000",
    b"1e999999999",
    b"-0",
    b"1" * 200_000,
    b"0." + b"1" * 20_000,
    b"[" * 1_000 + b"]" * 1_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
    b'{"a": 1, "a": 2}',
    b"\xef\xbb\xbf{}",
    b'{"a": 1} ',
    b'{"a": 1',
    b"null",
    json.dumps("x" * 899_000).encode(),
    json.dumps({f"k{n}": n for n in range(20_000)}).encode(),
]


@pytest.mark.parametrize("body", AWKWARD, ids=lambda b: repr(b[:24]))
def test_awkward_bodies_come_back_byte_for_byte(database: Database, body: bytes) -> None:
    neighbours = [delivery(), delivery()]
    sent = delivery(body)

    results = MessageStore(database).write([neighbours[0], sent, neighbours[1]])

    assert [r.error for r in results] == [None, None, None]
    assert stored_body(database, sent.message.id) == body
    assert stored(database, neighbours[0].message.id)["payload"] == {"n": 1}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_written_comes_back(database: Database, data: st.DataObject) -> None:
    batch = [
        delivery(
            data.draw(any_body),
            key=data.draw(st.none() | any_text),
            headers=data.draw(st.dictionaries(any_text, any_text, max_size=3)),
            content_type=data.draw(st.sampled_from(["application/json", "text/plain"]) | any_text),
        )
        for _ in range(data.draw(st.integers(1, 4)))
    ]

    results = MessageStore(database).write(batch)

    assert results == [WriteResult(message_id=d.message.id) for d in batch]
    for d in batch:
        row = stored(database, d.message.id)
        assert row["body"] == d.message.body
        assert row["key"] == (None if d.message.key is None else clean(d.message.key))
        assert row["content_type"] == clean(d.message.content_type)
        assert row["headers"] == {clean(k): clean(v) for k, v in d.message.headers.items()}


@given(st.lists(st.dictionaries(any_text, any_text | st.just('"},{"'), max_size=3), min_size=1, max_size=5))
def test_headers_of_a_batch_are_encoded_as_each_by_itself(headers: list[dict[str, str]]) -> None:
    assert headers_jsons(headers) == [headers_json(h) for h in headers]


@pytest.mark.parametrize(
    ("content_type", "copied"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/cloudevents+json", True),
        ("text/plain", False),
        ("application/jsonp", False),
        ("", False),
    ],
)
def test_the_copy_is_kept_of_what_calls_itself_json(
    database: Database, content_type: str, copied: bool
) -> None:
    sent = delivery(b'{"a": [1, 2.5, null]}', content_type=content_type)

    MessageStore(database).write([sent])

    assert stored(database, sent.message.id)["payload"] == ({"a": [1, 2.5, None]} if copied else None)
    assert says_json(content_type) == copied


def test_json_that_the_check_allows_and_the_server_refuses_loses_only_its_copy(
    postgres_database: Database,
) -> None:
    """jsonb keeps numbers in decimal and has a smallest one; our check reads a zero."""
    tiny, neighbour = delivery(b"1e-20000"), delivery()
    assert holds_json(tiny.message.body)

    results = MessageStore(postgres_database).write([tiny, neighbour])

    assert [r.error for r in results] == [None, None]
    assert stored(postgres_database, tiny.message.id)["payload"] is None
    assert stored(postgres_database, neighbour.message.id)["payload"] == {"n": 1}


def test_a_constraint_on_the_copy_is_not_escaped_by_leaving_the_copy_out(
    postgres_database: Database,
) -> None:
    """A row that the user's own check refuses is refused, also when the check trips over its type."""
    with postgres_database.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE messages ADD CONSTRAINT amount CHECK ((payload->>'amount')::int > 0)"
        )

    results = MessageStore(postgres_database).write([
        delivery(b'{"amount": 5}'), delivery(b'{"amount": -5}'), delivery(b'{"amount": "five"}'),
    ])  # fmt: skip

    assert [None if r.error is None else str(r.error) for r in results] == [
        None,
        "23514 CheckViolation, constraint amount",
        "22P02 InvalidTextRepresentation",
    ]


def test_nul_and_lone_surrogates_become_the_replacement_character(database: Database) -> None:
    sent = delivery(key="a\x00b", headers={"x\ud800": "\x00"}, content_type="text/\udfff")

    MessageStore(database).write([sent])

    row = stored(database, sent.message.id)
    assert (row["key"], row["headers"], row["content_type"]) == (
        "a\ufffdb",
        {"x\ufffd": "\ufffd"},
        "text/\ufffd",
    )


def test_a_large_batch_of_large_bodies(database: Database) -> None:
    batch = [delivery(bytes([n]) * 900_000, id=ids.new_id()) for n in range(20)]

    results = MessageStore(database).write(batch)

    assert all(r.error is None for r in results)
    assert stored(database, batch[7].message.id)["body"] == batch[7].message.body
