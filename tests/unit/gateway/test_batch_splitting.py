"""Items come out with their exact bytes, wherever the pieces of the body are cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.splitting import BrokenBatch, Elements, Item, Lines, Splitter
from gateway.problems import BODY_TOO_LARGE, OVERLOADED


def split(splitter: Splitter, body: bytes, sizes: list[int] | None = None) -> list[Item]:
    items: list[Item] = []
    at = 0
    for size in sizes or ():
        items += splitter.feed(body[at : at + size])
        at += size
    return items + splitter.feed(body[at:]) + splitter.finish()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CUTS = st.lists(st.integers(0, 12), max_size=60)
SPACE = st.text(" \t\r\n", max_size=3)


@given(values=st.lists(JSON, max_size=6), cuts=CUTS, space=SPACE, ascii_only=st.booleans())
def test_elements_are_the_bytes_between_the_commas(
    values: list[object], cuts: list[int], space: str, ascii_only: bool
) -> None:
    texts = [json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace") for value in values]
    gap = space.encode()
    body = gap + b"[" + gap + (gap + b"," + gap).join(texts) + gap + b"]" + gap

    assert split(Elements(10_000), body, cuts) == texts


@given(
    lines=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))),
    cuts=CUTS,
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
)
def test_lines_are_the_bytes_between_the_line_ends(
    lines: list[bytes], cuts: list[int], end: bytes, last: bool
) -> None:
    body = end.join(lines) + (end if last else b"")

    assert split(Lines(100), body, cuts) == [line for line in lines if line]


@pytest.mark.parametrize("make", [Lines, Elements])
@pytest.mark.parametrize("seed", range(30))
def test_what_is_too_large_is_not_kept_and_hurts_only_itself(make: type, seed: int) -> None:
    rng = random.Random(seed)
    items = [b'"' + b"x" * rng.randint(0, 30) + b'"' for _ in range(30)]
    whole = b"[" + b",".join(items) + b"]" if make is Elements else b"\n".join(items)
    splitter = make(20)

    got: list[Item] = []
    at = 0
    while at < len(whole):
        size = rng.randint(1, 40)
        got += splitter.feed(whole[at : at + size])
        at += size
        assert splitter.held <= 20 + 64
    got += splitter.finish()

    assert got == [item if len(item) <= 20 else BODY_TOO_LARGE for item in items]


@pytest.mark.parametrize("make", [Lines, Elements])
def test_a_dropped_item_is_read_over(make: type) -> None:
    splitter = make(100)
    begin, comma, end = (b"[", b",", b"]") if make is Elements else (b"", b"\n", b"")

    got = splitter.feed(begin + b'"a"' + comma + b'"b')
    splitter.drop(OVERLOADED)
    splitter.drop(BODY_TOO_LARGE)  # there is nothing left of it
    assert splitter.held == 0
    got += splitter.feed(b"bb")
    got += splitter.feed(b'b"' + comma + b'"c"' + end) + splitter.finish()

    assert got == [b'"a"', OVERLOADED, b'"c"']


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        (b"", []),
        (b"{}", []),
        (b"1", []),
        (b"[1", []),
        (b"[1,2", [b"1"]),
        (b"[1,]", [b"1"]),
        (b"[,1]", []),
        (b"[1,,2]", [b"1"]),
        (b"[1]2", [b"1"]),
        (b"[1}", []),
        (b'["a', []),
        (b'[{"a":[1}]', []),
    ],
)
def test_what_is_no_array_is_told_with_the_items_before(body: bytes, taken: list[bytes]) -> None:
    splitter = Elements(100)
    got: list[Item] = []

    def take() -> None:
        got.extend(splitter.feed(body))
        got.extend(splitter.finish())

    with pytest.raises(BrokenBatch) as broken:
        take()

    assert got + broken.value.args[1] == taken


def test_an_empty_array_has_no_elements() -> None:
    assert split(Elements(100), b" [ ] ") == []


def test_space_between_elements_takes_no_room() -> None:
    splitter = Elements(100)

    splitter.feed(b"[1,")
    for _ in range(50):
        splitter.feed(b" " * 100)

    assert splitter.held < 200
    assert splitter.feed(b"2]") == [b"2"]


def test_long_items_in_small_pieces_cost_no_square() -> None:
    """Each byte is looked at once: the work is counted, not timed."""
    looked_at = 0

    class Counting(bytes):
        def find(self, *args: Any) -> int:
            nonlocal looked_at
            looked_at += len(self)
            return super().find(*args)

    splitter = Lines(100_000)
    for _ in range(1_000):
        splitter.feed(Counting(b"x" * 10))

    assert looked_at == 10_000
    assert splitter.finish() == [b"x" * 10_000]
