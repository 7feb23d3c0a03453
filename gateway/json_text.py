"""Looking into the text of JSON without changing a byte of it."""

from __future__ import annotations

import base64
import re

import orjson

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]', re.DOTALL)
SPACE = b" \t\r\n"


def raw_member(text: bytes, name: str) -> bytes:
    """
    The bytes of a member's value as they stand in the text of a JSON object; of several the last.

    The text must be valid, and the object have that member.
    """
    depth = 0
    key: bytes | None = None
    start = 0
    found = b""
    for token in _TOKEN.finditer(text):
        match text[token.start()]:
            case 0x7B | 0x5B:  # { [
                depth += 1
            case 0x7D | 0x5D | 0x2C as mark if depth == 1:  # } ] ,
                if key is not None and orjson.loads(key) == name:
                    found = text[start : token.start()].strip(SPACE)
                key = None
                depth -= mark != 0x2C
            case 0x7D | 0x5D:
                depth -= 1
            case 0x3A if depth == 1:  # :
                start = token.end()
            case 0x22 if depth == 1 and key is None:  # "
                key = token[0]
    return found


def from_base64(text: object) -> bytes:
    """
    Raises:
        ValueError: it is not a text, or not base64.
    """
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]  # what is no text is told, too
    except (TypeError, ValueError) as error:
        raise ValueError(f"not base64 text: {error}") from error
