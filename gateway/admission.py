"""How much may be in work at once."""

from __future__ import annotations


class Admission:
    """
    Counts messages in work and the body bytes held in memory; says no above the limits.

    A place is taken by a whole message, bytes as they arrive: a body that is only announced holds
    nothing.
    """

    __slots__ = ("count", "max_count", "max_size", "size")

    def __init__(self, max_count: int, max_size: int) -> None:
        self.max_count = max_count
        self.max_size = max_size
        self.count = 0
        self.size = 0

    def fits(self, size: int) -> bool:
        """Whether a message of so many bytes could be taken now."""
        return self.count < self.max_count and self.size + size <= self.max_size

    def over(self, size: int) -> int:
        """How many bytes too many `size` more would be."""
        return self.size + size - self.max_size

    def enter(self) -> bool:
        """Take a place."""
        if self.count >= self.max_count:
            return False
        self.count += 1
        return True

    def grow(self, size: int) -> bool:
        """Take `size` more bytes."""
        if self.size + size > self.max_size:
            return False
        self.size += size
        return True

    def release(self, size: int, places: int) -> None:
        """Give both back, of a message that is over."""
        self.size -= size
        self.count -= places

    def shrink(self, size: int) -> None:
        """Give bytes back."""
        self.size -= size
