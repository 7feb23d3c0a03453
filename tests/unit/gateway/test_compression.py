"""Compressed bodies are stored as what they hold, and cannot hold more than any other body."""

from __future__ import annotations

import gzip
import io
import resource
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache

import pytest
from backports import zstd

from gateway.compression import PIECE, CorruptBody, Inflater
from tests.unit.gateway.support import request, running


def _zstd(body: bytes) -> bytes:
    # Without its checksum a frame does not tell a changed byte.
    return zstd.compress(body, options={zstd.CompressionParameter.checksum_flag: 1})


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": _zstd}
BODY = b'{"order": 1, "note": "' + b"x" * 5_000 + b'"}'

both = pytest.mark.parametrize("encoding", COMPRESS)


@both
async def test_a_compressed_body_is_stored_as_what_it_holds(encoding: str) -> None:
    async with running() as gateway:
        answer = await gateway.post(COMPRESS[encoding](BODY), headers={"Content-Encoding": encoding})

        [message] = gateway.broker.messages
        assert answer.status_code == 202
        assert message.body == BODY
        assert "content-encoding" not in message.headers


@both
async def test_the_same_body_compressed_and_plain_is_one_message(encoding: str) -> None:
    async with running() as gateway:
        plain = await gateway.post(BODY, headers={"Idempotency-Key": "k"})
        again = await gateway.post(
            COMPRESS[encoding](BODY), headers={"Idempotency-Key": "k", "Content-Encoding": encoding}
        )

        assert (plain.json()["duplicate"], again.json()["duplicate"]) == (False, True)


async def test_x_gzip_is_gzip_and_identity_is_nothing() -> None:
    async with running() as gateway:
        await gateway.post(gzip.compress(BODY), headers={"Content-Encoding": "X-GZIP, identity"})

        assert gateway.broker.messages[0].body == BODY


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd, gzip", "nonsense"])
async def test_other_codings_are_415_and_the_answer_lists_ours(encoding: str) -> None:
    async with running() as gateway:
        answer = await gateway.post(b"x", headers={"Content-Encoding": encoding})

        assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-encoding")
        assert answer.headers["accept-encoding"] == "gzip, zstd"


async def test_two_fields_of_codings_are_one_list() -> None:
    async with running() as gateway:
        answer = await gateway.client.post(
            "/v1/queues/orders/messages",
            content=gzip.compress(gzip.compress(BODY)),
            headers=[("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")],
        )

        assert answer.status_code == 415


@both
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped", "garbage behind"])
async def test_what_is_not_whole_is_400_and_not_stored(encoding: str, damage: str) -> None:
    whole = COMPRESS[encoding](BODY)
    body = {
        "cut": whole[:-1],
        "empty": b"",
        "garbage": b"no compression at all",
        "flipped": whole[: len(whole) // 2]
        + bytes([whole[len(whole) // 2] ^ 0xFF])
        + whole[len(whole) // 2 + 1 :],
        "garbage behind": whole + b"garbage",
    }[damage]
    async with running() as gateway:
        answer = await gateway.post(body, headers={"Content-Encoding": encoding})
        parts = gateway.app.parts
        assert parts is not None

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/corrupt-body")
        assert gateway.broker.messages == []
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


@both
async def test_the_limit_is_on_what_comes_out(encoding: str) -> None:
    async with running(max_body_bytes=10_000) as gateway:
        fits = await gateway.post(COMPRESS[encoding](b"x" * 10_000), headers={"Content-Encoding": encoding})
        large = await gateway.post(COMPRESS[encoding](b"x" * 10_001), headers={"Content-Encoding": encoding})

        assert (fits.status_code, large.status_code) == (202, 413)
        assert large.json()["limit"] == 10_000


@both
async def test_a_bomb_is_stopped_at_the_limit(encoding: str) -> None:
    """1 MB that would inflate to 1 GB (acceptance j): 413, and the process does not grow."""
    bomb = _bomb(encoding)
    async with running() as gateway:
        await gateway.post(bomb, headers={"Content-Encoding": encoding})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(5):
            answer = await gateway.post(bomb, headers={"Content-Encoding": encoding})
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

        assert gateway.broker.messages == []
        assert grown < 32 * 1024  # KiB


@both
async def test_a_stream_of_nothing_has_an_end(encoding: str) -> None:
    """Empty members inflate to nothing; what is sent counts too."""
    empty = COMPRESS[encoding](b"")
    async with running(max_body_bytes=10_000) as gateway:
        answer = await gateway.post(empty * (90_000 // len(empty)), headers={"Content-Encoding": encoding})

        assert answer.status_code == 413


async def test_a_bomb_takes_its_share_of_the_budget_only_as_it_inflates() -> None:
    async with running(max_body_bytes=10_000, max_in_flight_bytes=10_000) as gateway:
        slow = await gateway.connect()
        held = gzip.compress(b"x" * 8_000, mtime=0)
        head = request(length=False, headers=f"Content-Encoding: gzip\r\nContent-Length: {len(held)}\r\n")
        await slow.send(head + held[:-1])
        while gateway.app.parts is None or gateway.app.parts.ingest._admission.size < 8_000:
            assert (await gateway.raw(request(b""))).status == 202  # a turn of the server
        other = await gateway.raw(request(b"x" * 5_000))
        await slow.send(held[-1:])

        assert other.problem["type"] == "/problems/overloaded"
        assert (await slow.answer()).status == 202


@both
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_inflating_does_not_depend_on_how_the_bytes_arrive(encoding: str, step: int) -> None:
    body = bytes(range(256)) * 600 + b"\x00" * 200_000
    sent = COMPRESS[encoding](body[:1000]) + COMPRESS[encoding](b"") + COMPRESS[encoding](body[1000:])
    inflater = Inflater(encoding)

    pieces = [p for start in range(0, len(sent), step) for p in inflater.feed(sent[start : start + step])]
    inflater.finish()

    assert b"".join(pieces) == body
    assert max(len(p) for p in pieces) <= PIECE


@both
def test_inflating_a_bomb_holds_a_piece_at_a_time(encoding: str) -> None:
    inflater = Inflater(encoding)
    bomb = _bomb(encoding)
    tracemalloc.start()
    try:
        size = 0
        for piece in inflater.feed(bomb):
            size += len(piece)
            if size > 50 * 2**20:
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * 2**20


def test_a_zstd_window_beyond_what_the_standard_allows_is_refused() -> None:
    large = zstd.compress(
        bytes(range(256)) * 2**18,
        options={
            zstd.CompressionParameter.window_log: 25,
            zstd.CompressionParameter.content_size_flag: 0,
        },
    )

    with pytest.raises(CorruptBody, match="memory"):
        list(Inflater("zstd").feed(large))


@cache
def _bomb(encoding: str) -> bytes:
    """At most about 1 MB that inflates to 1 GiB."""
    out = io.BytesIO()
    zeros = bytes(2**20)
    compressor = zlib.compressobj(9, wbits=31) if encoding == "gzip" else zstd.ZstdCompressor()
    for _ in range(1024):
        out.write(compressor.compress(zeros))
    out.write(compressor.flush())
    return out.getvalue()
