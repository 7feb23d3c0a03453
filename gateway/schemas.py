"""
Bodies checked against a queue's JSON Schema before they are stored.

The reason names the place in the body (a JSON Pointer, RFC 6901) and the keyword that it
breaks, and never the value: what producers send stays out of answers and logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from forebay.errors import SettingsError
from gateway.answer import Answer
from gateway.problems import SCHEMA_MISMATCH, problem

if TYPE_CHECKING:
    import jsonschema_rs

MAX_ERRORS = 10
"""Places named in one answer; a list of a thousand wrong items says no more."""

BACKTRACKS = 100_000
"""
Steps that one pattern may go back on one text.

A pattern such as ^(a+)+$ would otherwise stop the whole gateway for as long as a sender likes.
"""


class Schema:
    """The schema in one file, of any draft from 4 to 2020-12 ($schema says which)."""

    def __init__(self, setting: str, path: Path) -> None:
        """
        Raises:
            SettingsError: the file is no schema; names `setting`.
        """
        # Only here: a gateway without schemas loads nothing of it.
        import jsonschema_rs

        try:
            text = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{setting} {path} cannot be read: {error.strerror}") from error
        try:
            self._validator: jsonschema_rs.Validator = jsonschema_rs.validator_for(
                orjson.loads(text),
                base_uri=path.absolute().as_uri(),
                retriever=_beside(path.absolute().parent),
                pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS),
            )
        except orjson.JSONDecodeError as error:
            raise SettingsError(f"{setting} {path} is not JSON: {error}") from error
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(f"{setting} {path} is no JSON Schema: {reason}") from error

    def refusal(self, body: bytes) -> Answer | None:
        """The 422 for a body that does not fit; None: it fits."""
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _mismatch([("", "the body is not JSON")])
        try:
            return None if self._validator.is_valid(document) else _mismatch(self._found(document))
        except ValueError:
            # Some keywords (const, enum, uniqueItems) follow a value only so deep.
            return _mismatch([("", "the body is nested too deeply")])

    def _found(self, document: object) -> list[tuple[str, str]]:
        errors = islice(self._validator.iter_errors(document), MAX_ERRORS)
        return [(_pointer(error.instance_path), _broken(error)) for error in errors]


def _beside(folder: Path) -> Any:
    """
    How `$ref` to another file is followed: only to files in the schema's folder and below it.

    Never over the network: whether the gateway starts must not depend on another server.
    """

    def read(uri: str) -> object:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path)).resolve()
        if parts.scheme != "file" or not path.is_relative_to(folder.resolve()):
            raise ValueError(f"$ref {uri} is outside the schema's folder")
        return orjson.loads(path.read_bytes())

    return read


def _pointer(path: Iterable[str | int]) -> str:
    """A JSON Pointer: /items/0/price."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


_NAMED = frozenset(
    {"type", "required", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"}
)
"""Keywords whose own value, which is the schema's, says what would have been right."""


def _broken(error: jsonschema_rs.ValidationError) -> str:
    """What is wrong in the schema's words."""
    keyword = str(error.kind.name)
    expected = {k: v for k, v in error.kind.as_dict().items() if k not in ("value", "unexpected")}
    if keyword in _NAMED and len(expected) == 1:
        (value,) = expected.values()
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        return f"{keyword}: {shown}"
    return keyword


def _mismatch(found: list[tuple[str, str]]) -> Answer:
    pointer, what = found[0]
    place = f"at {pointer}" if pointer else "as a whole"
    return problem(
        SCHEMA_MISMATCH,
        f"The body does not fit the queue's schema, {place}: {what}. Nothing was stored.",
        errors=[{"pointer": where, "broken": said} for where, said in found],
    )
