"""Values fit a column exactly, or are refused with a word that does not quote them."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import MessageRejected
from forebay.storage.mapping.convert import Converter, Unfit, dump
from forebay.storage.mapping.description import Column
from forebay.storage.mapping.documents import parse
from forebay.storage.mapping.spec import Kind

FIRST, LAST = datetime.fromisoformat("0002-01-01"), datetime.fromisoformat("9998-01-01")

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def converter(kind: Kind, **fields: Any) -> Converter:
    fields = {"name": "c", "type_name": kind, "base": kind, "kind": kind, "nullable": True} | fields
    return Converter(kind, Column(**fields))


def converted(kind: Kind, value: object, **fields: Any) -> Any:
    return converter(kind, **fields).one(value)


def refused(kind: Kind, value: object, **fields: Any) -> str:
    with pytest.raises(Unfit) as error:
        converted(kind, value, **fields)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 5, 5), ("integer", 5.0, 5), ("integer", "-5", -5), ("integer", Decimal("1E+2"), 100),
        ("float", 1, 1.0), ("float", "1.5e3", 1500.0), ("float", Decimal("0.1"), 0.1),
        ("decimal", 0.1, Decimal("0.1")), ("decimal", "1.10", Decimal("1.10")), ("decimal", 7, Decimal(7)),
        ("boolean", True, True), ("boolean", "false", False),
        ("text", "", ""), ("text", "é", "é"),
        ("date", "2013-01-31", date(2013, 1, 31)),
        ("time", "23:59", time(23, 59)), ("time", "23:59:01.5", time(23, 59, 1, 500_000)),
        ("uuid", "019AAF0E-8d0c-7c52-b7a5-0d7f9f0f3a11", "019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11"),
        ("bytes", "aGk=", b"hi"), ("bytes", b"\x00", b"\x00"),
        ("json", {"a": [1, None]}, b'{"a":[1,null]}'), ("json", Decimal("1.00"), b"1.00"),
        ("timestamp", "2013-01-01T05:00:00Z", datetime(2013, 1, 1, 5, tzinfo=UTC)),
        ("timestamp", "2013-01-01t05:00:00.25z", datetime(2013, 1, 1, 5, 0, 0, 250_000, tzinfo=UTC)),
        ("timestamp", "2013-01-01 05:00:00", datetime(2013, 1, 1, 5, tzinfo=UTC)),
        ("timestamp", "2013-01-01T05:00:00-05:00", datetime(2013, 1, 1, 10, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_what_fits_is_taken_as_it_is(kind: Kind, value: object, expected: object) -> None:
    found = converted(kind, value)

    assert found == expected
    assert type(found) is type(expected)
    assert converter(kind).many([value, None]) == ([expected, None], {})


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("integer", 1.5, "not a whole number"), ("integer", "1.5", "not a whole number"),
        ("integer", "x", "not a number"), ("integer", "", "not a number"), ("integer", " 1", "not a number"),
        ("integer", True, "not a number"), ("integer", [1], "not a number"),
        ("integer", "\uff11", "not a number"),
        ("integer", 2**63, "out of range"), ("integer", 1e300, "out of range"),
        ("integer", Decimal("1E+999999"), "out of range"), ("integer", "1_000", "not a number"),
        ("float", "nan", "not a number"), ("float", "inf", "not a number"),
        ("float", "1e999", "out of range"),
        ("float", True, "not a number"), ("float", 2**53 + 1, "a whole number that a float does not hold"),
        ("float", 10**400, "out of range"),
        ("decimal", "NaN", "not a number"), ("decimal", {}, "not a number"),
        ("decimal", Decimal("1E+999999"), "out of range"),
        ("boolean", 1, "neither true nor false"), ("boolean", "yes", "neither true nor false"),
        ("text", 5, "not text"), ("text", True, "not text"), ("text", "a\x00", "holds a NUL character"),
        ("date", "2013-02-29", "not a date that exists"), ("date", "20130101", "not a date as RFC 3339"),
        ("date", "2013-01-01T00:00:00Z", "not a date as RFC 3339"), ("date", 5, "not a date as RFC 3339"),
        ("time", "24:00", "not a time of day that exists"), ("time", "1:00", "not a time of day such as"),
        ("timestamp", "2013-01-01", "not a time as RFC 3339"), ("timestamp", 0, "not a time as RFC 3339"),
        ("timestamp", "2013-01-01T05:00:60Z", "not a time that exists"),
        ("timestamp", "0001-01-01T00:00:00+01:00", "not a time that exists"),
        ("timestamp", "2013-01-01T05:00:00.1234567Z", "not a time as RFC 3339"),
        ("uuid", "{019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11}", "not a UUID"), ("uuid", 5, "not a UUID"),
        ("bytes", "a", "not base64"), ("bytes", "aGk=\n", "not base64"), ("bytes", 1, "not base64"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(kind: Kind, value: object, reason: str) -> None:
    assert refused(kind, value).startswith(reason)
    assert list(converter(kind).many([None, value])[1]) == [1]


def test_limits_of_the_column_are_kept() -> None:
    assert refused("integer", 40_000, low=-(2**15), high=2**15 - 1) == "out of range"
    assert refused("text", "abc", length=2) == "longer than 2 characters"
    assert refused("text", "éé", max_bytes=3) == "longer than 3 bytes"
    assert refused("float", 1e39, single=True) == "out of range"
    assert refused("json", {"a": "\x00"}, no_nul=True) == "holds a NUL character"
    assert converted("json", {"a": "\x00"}) == b'{"a":"\\u0000"}'


@pytest.mark.parametrize("value", ["999.99", "-999.99", "0.00", "1.500", "1E2", "0", "000001.5"])
def test_a_decimal_within_its_digits_fits(value: str) -> None:
    assert converted("decimal", Decimal(value), precision=5, scale=2) == Decimal(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("1000", "out of range"), ("1E3", "out of range"), ("0.001", "more than 2 digits after the point")],
)
def test_a_decimal_beyond_its_digits_is_refused_rather_than_rounded(value: str, reason: str) -> None:
    assert refused("decimal", Decimal(value), precision=5, scale=2) == reason


def test_a_column_of_another_kind_holds_the_text_of_a_value() -> None:
    def stored(kind: Kind, value: object) -> Any:
        column = Column(name="c", type_name="text", base="text", kind="text", nullable=True, length=30)
        return Converter(kind, column).one(value)

    assert stored("json", {"a": 1}) == '{"a":1}'
    assert stored("timestamp", "2013-01-01T05:00:00-05:00") == "2013-01-01T10:00:00Z"
    assert stored("decimal", "1.50") == "1.50"
    assert stored("boolean", True) == "true"
    with pytest.raises(Unfit, match="longer than 30"):
        stored("json", ["x" * 30])


@given(
    kind=st.sampled_from(["integer", "float", "decimal", "text", "boolean", "json"]),
    values=st.lists(json_values),
)
def test_a_column_as_a_whole_is_converted_as_its_values_one_by_one(kind: Kind, values: list[Any]) -> None:
    made = converter(kind, low=-(2**31), high=2**31 - 1, length=5, precision=10, scale=3)

    together, unfit = made.many(list(values))

    for position, value in enumerate(values):
        if position in unfit:
            with pytest.raises(Unfit):
                made.one(value)
        else:
            one = made.one(value)
            assert (together[position], type(together[position])) == (one, type(one))


@given(st.integers())
def test_integers_are_exact_or_refused(value: int) -> None:
    for sent in (value, str(value)):
        if -(2**63) <= value < 2**63:
            assert converted("integer", sent) == value
        else:
            assert refused("integer", sent) == "out of range"


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=12))
def test_decimals_arrive_with_every_digit(value: Decimal) -> None:
    body = b'{"n": %s}' % format(value, "f").encode()

    assert converted("decimal", parse(body)["n"]) == value
    assert Decimal(json.loads(dump(parse(body)), parse_float=Decimal, parse_int=Decimal)["n"]) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_arrive_as_they_are(value: float) -> None:
    body = json.dumps({"n": value}).encode()

    found = converted("float", parse(body)["n"])

    assert found == value
    assert math.copysign(1, found) == math.copysign(1, value)


@given(
    st.datetimes(min_value=FIRST, max_value=LAST),
    st.integers(-14 * 60, 14 * 60),
)
def test_timestamps_are_the_same_moment_in_utc(moment: datetime, offset: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))

    found = converted("timestamp", local.isoformat())

    assert found == local
    assert found.utcoffset() == timedelta(0)


@given(st.uuids())
def test_any_uuid_fits(value: uuid.UUID) -> None:
    assert converted("uuid", str(value).upper()) == str(value)


# ---- bodies


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_body_is_read_as_any_json_parser_reads_it(document: dict[str, Any]) -> None:
    found = parse(json.dumps(document).encode())

    assert json.loads(dump(found)) == document


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}", b"{} {}", b"[" * 100_000],
)
def test_what_is_no_json_is_rejected(body: bytes) -> None:
    with pytest.raises(MessageRejected, match="the body is not JSON"):
        parse(body)


@pytest.mark.parametrize("body", [b"1", b"null", b'"{}"', b"[{}]"])
def test_what_is_no_object_is_rejected(body: bytes) -> None:
    with pytest.raises(MessageRejected, match="not a JSON object"):
        parse(body)


def test_a_number_of_hundreds_of_digits_is_read() -> None:
    digits = "1" * 300
    found = parse(b'{"n": %s}' % digits.encode())["n"]

    assert dump(found) == digits.encode()
    assert refused("integer", found) == "out of range"
