"""JSON pointers, as RFC 6901 has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.storage.mapping.pointers import find, parse_pointer, rest_of, taken_by
from forebay.storage.mapping.spec import Field, Header, OfMessage, parse_source

# The document and the answers of section 5.
DOCUMENT = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7,
    "m~n": 8,
}  # fmt: skip
ANSWERS = [
    ("", DOCUMENT), ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2),
    ("/e^f", 3), ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8),
]  # fmt: skip


@pytest.mark.parametrize(("pointer", "answer"), ANSWERS)
def test_the_examples_of_the_standard(pointer: str, answer: object) -> None:
    assert find(DOCUMENT, parse_pointer(pointer)) == answer


@pytest.mark.parametrize(
    "pointer", ["/foo/2", "/foo/-", "/foo/00", "/foo/-1", "/foo/bar", "/nothing", "/foo/0/x"]
)
def test_what_is_not_there_is_none(pointer: str) -> None:
    assert find(DOCUMENT, parse_pointer(pointer)) is None


@given(st.lists(st.text(), max_size=4))
def test_any_names_can_be_pointed_to(names: list[str]) -> None:
    document: Any = "found"
    for name in reversed(names):
        document = {name: document}
    text = "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)

    assert find(document, parse_pointer(text)) == "found"


@pytest.mark.parametrize("text", ["foo", "foo/bar", "/a~", "/a~2b", "#/a"])
def test_what_is_no_pointer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a JSON pointer"):
        parse_pointer(text)


def test_sources_are_pointers_headers_and_what_is_known_of_the_message() -> None:
    assert parse_source("/a/b") == Field(("a", "b"))
    assert parse_source("/header:x") == Field(("header:x",))
    assert parse_source("header:X-Client") == Header("x-client")
    assert parse_source("message:accepted_at") == OfMessage("accepted_at")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("carrier", 'write "/carrier"'),
        ("header:", "header:x-client"),
        ("message:ID", "there are id, queue"),
        ("body", "value = 'body'"),
    ],
)
def test_another_source_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_source(text)


def test_the_rest_is_what_no_pointer_takes() -> None:
    taken = taken_by([("a",), ("b", "c"), ("list", "0"), ("d", "e"), ("d", "f")])
    document = {"a": 1, "b": {"c": 2, "x": 3}, "list": [4, 5], "d": {"e": 6, "f": 7}, "y": None}

    assert rest_of(document, taken) == {"b": {"x": 3}, "list": [4, 5], "y": None}


def test_who_takes_an_object_takes_all_that_is_in_it() -> None:
    document = {"a": {"b": 1, "c": 2}, "d": 3}

    assert rest_of(document, taken_by([("a", "b"), ("a",)])) == {"d": 3}
    assert rest_of(document, taken_by([("a",), ("a", "b")])) == {"d": 3}
    assert rest_of(document, taken_by([()])) == document
