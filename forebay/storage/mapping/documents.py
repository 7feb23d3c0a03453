"""Bodies as JSON objects, with every number as exact as it was sent."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import orjson

from forebay.errors import MessageRejected

_LONG_NUMBER = re.compile(rb"[0-9][0-9.]{15}")
"""What may be a number that a float or 64 bits do not hold: a float keeps 15 digits of any number."""


def parse(body: bytes) -> dict[str, Any]:
    """
    The JSON object that `body` is.

    Raises:
        MessageRejected: it is none.
    """
    try:
        document = orjson.loads(body)
        if type(document) is dict and _LONG_NUMBER.search(body):
            document = json.loads(body.decode(), parse_float=Decimal, parse_int=_whole)
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise MessageRejected(
            "the body is not JSON", error_class="NotJson", detail=f"{type(error).__name__}: {error}"
        ) from None
    if type(document) is not dict:
        raise MessageRejected("the body is not a JSON object", error_class="NotAnObject")
    return document


def _whole(digits: str) -> int | Decimal:
    # Python refuses to read ints of thousands of digits, and orjson to write those beyond 64 bits.
    return int(digits) if len(digits) <= 18 else Decimal(digits)
