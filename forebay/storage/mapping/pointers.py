"""JSON pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Pointer = tuple[str, ...]
"""The names on the way from the top; none of them is the whole document."""

_BAD_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]*")
_LONGEST_INDEX = 9


def parse_pointer(text: str) -> Pointer:
    """
    `text` as the names that it is made of, escapes resolved.

    Raises:
        ValueError: it is not a JSON pointer; the text says what to write instead.
    """
    if text and not text.startswith("/"):
        raise ValueError(f'{text!r} is not a JSON pointer: it must start with "/"; write "/{text}"')
    if _BAD_ESCAPE.search(text):
        raise ValueError(f'{text!r} is not a JSON pointer: "~" is written "~0", and "/" in a name "~1"')
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def find(document: Any, pointer: Pointer) -> Any:
    """What `pointer` points to; None if there is nothing, which is not told from a JSON null."""
    for name in pointer:
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and _INDEX.fullmatch(name) and len(name) <= _LONGEST_INDEX:
            index = int(name)
            document = document[index] if index < len(document) else None
        else:
            return None
    return document


Taken = Mapping[str, "Taken | None"]
"""The names that pointers lead through; None where one ends."""


def taken_by(pointers: Iterable[Pointer]) -> Taken:
    """A tree of all `pointers`, for `rest_of`."""
    top: dict[str, Any] = {}
    # The shorter ones last: who takes /a takes all that is in it.
    for pointer in sorted(filter(None, pointers), key=len, reverse=True):
        table = top
        for name in pointer[:-1]:
            table = table.setdefault(name, {})
        table[pointer[-1]] = None
    return top


def rest_of(document: Mapping[str, Any], taken: Taken) -> dict[str, Any]:
    """
    The members of `document` that nobody has taken; of objects taken in part, the rest.

    A list of which something is taken stays whole: without it the others would change their places.
    """
    rest: dict[str, Any] = {}
    for name, value in document.items():
        if name not in taken:
            rest[name] = value
            continue
        inside = taken[name]
        if inside is None:
            continue
        if not isinstance(value, dict):
            rest[name] = value
        elif left := rest_of(value, inside):
            rest[name] = left
    return rest
