"""A member's value is found in the text of an object as it stands there, whatever is around it."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.json_text import from_base64, raw_member

NAMES = st.sampled_from(["body", "data", 'bo"dy', "b\\ody", "", "{", "a"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**50), 2**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@given(
    before=st.lists(st.tuples(NAMES, VALUES), max_size=3),
    value=VALUES,
    after=st.lists(st.tuples(NAMES.filter(lambda n: n != "body"), VALUES), max_size=3),
    space=st.sampled_from(["", " ", "\t ", "\n"]),
    ascii_only=st.booleans(),
)
def test_the_value_is_found_with_its_exact_bytes(
    before: list[tuple[str, object]],
    value: object,
    after: list[tuple[str, object]],
    space: str,
    ascii_only: bool,
) -> None:
    def text(of: object) -> str:
        return json.dumps(of, ensure_ascii=ascii_only)

    exact = text(value)
    members = [*before, ("body", value), *after]
    whole = f",{space}".join(
        f"{space}{text(name)}{space}:{space}{exact if held is value else text(held)}{space}"
        for name, held in members
    )
    whole = f"{space}{{{whole}}}{space}"

    assert raw_member(whole.encode(), "body") == exact.encode()
    assert orjson.loads(whole)["body"] == orjson.loads(exact)


@pytest.mark.parametrize("bad", [None, 1, "?", "AA", "AA=", "A A==", "\u00e9"])
def test_what_is_not_base64_is_told(bad: object) -> None:
    with pytest.raises(ValueError, match="not base64"):
        from_base64(bad)
