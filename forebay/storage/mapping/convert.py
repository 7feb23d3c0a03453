"""
From what a message holds to what a column takes, exactly or not at all.

A value is never bent to fit: no rounding, no cutting, no fraction lost. What is
refused is refused with a few words that name the kind of mistake and never the
value. Columns are converted as a whole: the usual case, all values of one plain
type, costs a fraction of a microsecond per row.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from forebay.storage.mapping.description import Column
from forebay.storage.mapping.spec import Kind
from forebay.storage.rows import _NUL_ESCAPE

Convert = Callable[[Any], Any]


class Unfit(Exception):
    """The column cannot take the value. The text says why, without the value."""


_NOTHING = type(None)
_INTEGER = re.compile(r"[+-]?[0-9]{1,60}")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,6})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?")
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_EXACT = 2**53
"""Up to here every whole number is a float of its own."""
_LARGEST_SINGLE = 3.4028235677973366e38
_MOST_DIGITS = 131_072
"""Before the point; PostgreSQL's limit for a numeric without precision. After it, an eighth of that."""


class Converter:
    """
    Converts the values of one column.

    Values are what a JSON parser returns (None, bool, int, float, Decimal, str, list,
    dict), bytes for a body and datetime for a time of ours. None stays None.
    """

    def __init__(self, kind: Kind, column: Column) -> None:
        self.kind = kind
        self._column = column
        self._convert, self._plain = self._made(kind, column)
        if column.kind is None:
            self._convert, self._plain = _any_text, None
        elif column.kind != kind:
            self._plain = None
            self._convert = _stored_as(self._convert, kind, column)

    def one(self, value: Any) -> Any:
        """
        Raises:
            Unfit
        """
        return None if value is None else self._convert(value)

    def many(
        self, values: list[Any], nulls: frozenset[str] = frozenset()
    ) -> tuple[list[Any], dict[int, Unfit]]:
        """
        All of them, and what is wrong by position; what stands at such a position means nothing.

        Texts among `nulls` are None.
        """
        done = None if self._plain is None else self._plain(values)
        if done is not None and (not nulls or nulls.isdisjoint(done)):
            return done, {}
        if nulls:
            values = [None if type(v) is str and v in nulls else v for v in values]
            done = None if self._plain is None else self._plain(values)
            if done is not None:
                return done, {}
        convert = self._convert
        try:
            return [None if v is None else convert(v) for v in values], {}
        except Unfit:
            pass
        converted: list[Any] = []
        unfit: dict[int, Unfit] = {}
        for position, value in enumerate(values):
            try:
                converted.append(None if value is None else convert(value))
            except Unfit as why:
                unfit[position] = why
                converted.append(None)
        return converted, unfit

    @staticmethod
    def _made(kind: Kind, column: Column) -> tuple[Convert, Callable[[list[Any]], list[Any] | None] | None]:
        """How to convert one value, and a quick way for a column of plain ones, if there is one."""
        match kind:
            case "integer":
                return _integers(column)
            case "float":
                return _floats(column)
            case "decimal":
                return _decimal(column), None
            case "text":
                return _texts(column)
            case "json":
                return _json(column), None
            case "timestamp" | "time":
                return _with_digits(_SIMPLE[kind], column.second_digits), None
        return _SIMPLE[kind], None


# ---- numbers


def _integers(column: Column) -> tuple[Convert, Callable[[list[Any]], list[Any] | None]]:
    low = -(2**63) if column.low is None else column.low
    high = 2**63 - 1 if column.high is None else column.high

    def convert(value: Any) -> int:
        number = _whole(value)
        if not low <= number <= high:
            raise Unfit("out of range")
        return number

    def plain(values: list[Any]) -> list[Any] | None:
        kinds = set(map(type, values))
        if kinds == {int}:
            return values if low <= min(values) and max(values) <= high else None
        if kinds == {int, _NOTHING}:
            numbers = [v for v in values if v is not None]
            return values if low <= min(numbers) and max(numbers) <= high else None
        return None

    return convert, plain


def _whole(value: Any) -> int:
    kind = type(value)
    if kind is int:
        return int(value)
    if kind is float:
        if not value.is_integer():
            raise Unfit("not a whole number")
        if abs(value) > _EXACT:
            raise Unfit("out of range")
        return int(value)
    if kind is Decimal:
        if value.adjusted() > 60:
            raise Unfit("out of range")
        if value.as_tuple().exponent < -2000 or value != value.to_integral_value():
            raise Unfit("not a whole number")
        return int(value)
    if kind is str:
        if not _INTEGER.fullmatch(value):
            raise Unfit("not a whole number" if _NUMBER.fullmatch(value) else "not a number")
        return int(value)
    raise Unfit("not a number")


def _floats(column: Column) -> tuple[Convert, Callable[[list[Any]], list[Any] | None]]:
    single = column.single

    def convert(value: Any) -> float:
        number = _float(value)
        if number in (float("inf"), float("-inf")) or (single and abs(number) >= _LARGEST_SINGLE):
            raise Unfit("out of range")
        return number

    def plain(values: list[Any]) -> list[Any] | None:
        if single:
            return None
        kinds = set(map(type, values))
        return values if kinds <= {float, _NOTHING} else None

    return convert, plain


def _float(value: Any) -> float:
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int:
        try:
            number = float(value)
        except OverflowError:
            raise Unfit("out of range") from None
        if int(number) != value:
            raise Unfit("a whole number that a float does not hold exactly")
        return number
    if kind is Decimal:
        return float(value)
    if kind is str:
        if not _NUMBER.fullmatch(value):
            raise Unfit("not a number")
        return float(value)
    raise Unfit("not a number")


def _decimal(column: Column) -> Convert:
    precision, scale = column.precision, column.scale or 0

    def convert(value: Any) -> Decimal:
        number = _exact(value)
        _sign, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        # How many are after the point, zeros at the end not counted: 1.50 fits where 1.5 does.
        while exponent < 0 and digits and digits[-1] == 0:
            digits, exponent = digits[:-1], exponent + 1
        after = max(0, -exponent) if digits else 0
        before = len(digits) + exponent if digits else 0
        if column.digits is not None and len(digits) > column.digits:
            raise Unfit(f"more than {column.digits} digits, which this database does not keep")
        if precision is None:
            if before > _MOST_DIGITS or after > _MOST_DIGITS // 8 - 1:
                raise Unfit("out of range")
            return number
        if digits and before > precision - scale and any(digits):
            raise Unfit("out of range")
        if after > max(scale, 0):
            raise Unfit(f"more than {max(scale, 0)} digits after the point")
        return number

    return convert


def _exact(value: Any) -> Decimal:
    kind = type(value)
    if kind is Decimal or kind is int:
        return Decimal(value)
    if kind is float:
        # The shortest text that means this float is what was sent: `documents` sees to the longer ones.
        return Decimal(repr(value))
    if kind is str:
        if not _NUMBER.fullmatch(value):
            raise Unfit("not a number")
        try:
            return Decimal(value)
        except InvalidOperation:
            raise Unfit("out of range") from None
    raise Unfit("not a number")


# ---- texts


def _texts(column: Column) -> tuple[Convert, Callable[[list[Any]], list[Any] | None]]:
    length, max_bytes = column.length, column.max_bytes

    def convert(value: Any) -> str:
        if type(value) is not str:
            raise Unfit("not text")
        return _fitting(value, length, max_bytes)

    def plain(values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {str, _NOTHING}:
            return None
        texts = list(filter(None, values))
        if "\x00" in "".join(texts):
            return None
        longest = max(map(len, texts), default=0)
        fits = (length is None or longest <= length) and (max_bytes is None or longest * 4 <= max_bytes)
        return values if fits else None

    return convert, plain


def _fitting(text: str, length: int | None, max_bytes: int | None) -> str:
    if "\x00" in text:
        raise Unfit("holds a NUL character")
    if length is not None and len(text) > length:
        raise Unfit(f"longer than {length} characters")
    if max_bytes is not None and len(text.encode()) > max_bytes:
        raise Unfit(f"longer than {max_bytes} bytes")
    return text


def _stored_as(convert: Convert, kind: Kind, column: Column) -> Convert:
    """A value read as `kind` for a column of another one; `readable` says which pairs there are."""
    if kind in column.also:
        return convert
    if column.kind == "integer":
        return lambda value: int(convert(value))
    if column.kind == "float":
        return lambda value: _float(convert(value))
    if column.kind == "decimal":
        fits = _decimal(column)
        return lambda value: fits(convert(value))
    text = _AS_TEXT.get(kind, str)
    return lambda value: _fitting(text(convert(value)), column.length, column.max_bytes)


def _any_text(value: Any) -> str:
    """For a type that we do not know: the text of any plain value, which the database will judge."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) not in (str, int, float, Decimal):
        raise Unfit("neither text nor number")
    return _fitting(str(value), None, None)


# ---- the rest


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    if value == "true":
        return True
    if value == "false":
        return False
    raise Unfit("neither true nor false")


def _timestamp(value: Any) -> datetime:
    if type(value) is datetime:
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    if type(value) is not str or (found := _TIMESTAMP.fullmatch(value)) is None:
        raise Unfit("not a time as RFC 3339 has it")
    day, clock, zone = found.groups()
    try:
        if zone is None or zone in "Zz":
            return datetime.fromisoformat(f"{day}T{clock}+00:00")
        return datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise Unfit("not a time that exists") from None


def _with_digits(convert: Convert, digits: int | None) -> Convert:
    """Databases round what they keep of a second. A time of our own is cut; one that was sent is refused."""
    if digits is None or digits >= 6:
        return convert
    unit = 10 ** (6 - digits)

    def exactly(value: Any) -> Any:
        found = convert(value)
        if rest := found.microsecond % unit:
            if type(value) is str:
                raise Unfit(f"more than {digits} digits of a second")
            found = found.replace(microsecond=found.microsecond - rest)
        return found

    return exactly


def _date(value: Any) -> date:
    if type(value) is date:
        return value
    if type(value) is not str or not _DATE.fullmatch(value):
        raise Unfit("not a date as RFC 3339 has it")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise Unfit("not a date that exists") from None


def _time(value: Any) -> time:
    if type(value) is time:
        return value
    if type(value) is not str or not _TIME.fullmatch(value):
        raise Unfit("not a time of day such as 12:34:56")
    try:
        return time.fromisoformat(value)
    except ValueError:
        raise Unfit("not a time of day that exists") from None


def _uuid(value: Any) -> str:
    if type(value) is not str or not _UUID.fullmatch(value):
        raise Unfit("not a UUID")
    return str(uuid.UUID(value))


def _bytes(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is not str:
        raise Unfit("not base64")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise Unfit("not base64") from None


def _json(column: Column) -> Convert:
    no_nul = column.no_nul

    def convert(value: Any) -> bytes:
        document = dump(value)
        if no_nul and _NUL_ESCAPE.search(document):
            raise Unfit("holds a NUL character")
        return document

    return convert


def dump(value: Any) -> bytes:
    """
    `value` as JSON, its numbers as they were sent.

    Raises:
        Unfit
    """
    try:
        return orjson.dumps(value, default=_number_text)
    except TypeError as error:
        raise Unfit("not JSON that can be written again") from error


def _number_text(value: Any) -> orjson.Fragment:
    if type(value) is Decimal:
        return orjson.Fragment(str(value))
    raise TypeError


_SIMPLE: dict[Kind, Convert] = {
    "boolean": _boolean, "timestamp": _timestamp, "date": _date, "time": _time, "uuid": _uuid,
    "bytes": _bytes,
}  # fmt: skip

_AS_TEXT: dict[Kind, Callable[[Any], str]] = {
    "json": lambda document: document.decode(),
    "timestamp": lambda moment: moment.isoformat().replace("+00:00", "Z"),
    "date": lambda day: day.isoformat(),
    "time": lambda clock: clock.isoformat(),
    "boolean": lambda yes: "true" if yes else "false",
}

READABLE: dict[Kind, tuple[Kind, ...]] = {
    "text": ("text", "integer", "decimal", "boolean", "timestamp", "date", "time", "uuid", "json"),
    "integer": ("integer", "boolean"),
    "float": ("float", "integer"),
    "decimal": ("decimal", "integer"),
    "boolean": ("boolean",),
    "timestamp": ("timestamp",),
    "date": ("date",),
    "time": ("time",),
    "uuid": ("uuid",),
    "json": ("json",),
    "bytes": ("bytes",),
}
"""By what a column holds: how its values may be read. A text column holds anything that has one text."""
