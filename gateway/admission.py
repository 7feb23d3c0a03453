"""How much may be in work at once."""

from __future__ import annotations


class Admission:
    """
    Counts requests in work and the body bytes they hold; says no above the limits.

    Bytes are taken before they are read, from Content-Length, or as they arrive.
    """

    __slots__ = ("count", "max_count", "max_size", "size")

    def __init__(self, max_count: int, max_size: int) -> None:
        self.max_count = max_count
        self.max_size = max_size
        self.count = 0
        self.size = 0

    def enter(self, size: int) -> bool:
        """Take a place and `size` bytes, or neither."""
        if self.count >= self.max_count or self.size + size > self.max_size:
            return False
        self.count += 1
        self.size += size
        return True

    def grow(self, size: int) -> bool:
        """Take `size` more bytes for a request that has a place."""
        if self.size + size > self.max_size:
            return False
        self.size += size
        return True

    def leave(self, size: int) -> None:
        """Give the place back, with all the bytes taken for it."""
        self.count -= 1
        self.size -= size
