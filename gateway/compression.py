"""Compressed bodies, inflated as they arrive: never more than a small piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

PIECE = 64 * 2**10
"""Bytes of output that are made at once. A bomb is found out after the piece that is one too many."""

ZSTD_WINDOW_LOG = 23
"""8 MiB: what a sender may count on, and more need not be taken (RFC 9659)."""


class CorruptBody(Exception):
    """The body is not what its Content-Encoding says, or ends too early. The text is for its sender."""


class _Decoder(Protocol):
    """One member of a gzip stream, or one frame of a Zstandard stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor, which gives input back, as one that keeps it."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # With the last byte of input taken, a full piece may still leave some output inside.
        self.needs_input = not self._zlib.unconsumed_tail and len(piece) < max_length
        return piece


def _zstd_frame() -> _Decoder:
    return ZstdDecompressor(options={DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


_DECODERS: dict[str, Callable[[], _Decoder]] = {"gzip": _GzipMember, "zstd": _zstd_frame}

ENCODINGS = tuple(_DECODERS)
"""The content codings that are taken."""


class Inflater:
    """One body. Several gzip members, or Zstandard frames, one behind the other are one body."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._decoder = _DECODERS[encoding]()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        What `data` adds to the body, in pieces of at most PIECE bytes; all of them must be taken.

        Raises:
            CorruptBody
        """
        try:
            while True:
                if self._decoder.eof:
                    if not data:
                        return
                    self._decoder = _DECODERS[self._encoding]()
                piece = self._decoder.decompress(data, PIECE)
                if piece:
                    yield piece
                if self._decoder.eof:
                    data = self._decoder.unused_data
                elif self._decoder.needs_input:
                    return
                else:
                    data = b""
        except (zlib.error, ZstdError) as error:
            raise CorruptBody(f"The body is not valid {self._encoding}: {error}.") from error

    def finish(self) -> None:
        """
        Raises:
            CorruptBody: the body has no end.
        """
        if not self._decoder.eof:
            raise CorruptBody(f"The {self._encoding} body ends too early.")
