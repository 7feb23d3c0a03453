"""How far one partition may be committed, and what beyond that is finished too."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from forebay.brokers.kafka.parking import Failed

MAX_METADATA = 3_000
"""Characters; a broker takes 4096 bytes by default (`offset.metadata.max.bytes`)."""
MAX_FAILED = 1_050
"""Characters, beside those."""

MAX_DONE = 1_000_000
"""Offsets above an unfinished one, after which a partition is not read on."""

_PREFIX = "f1:"
_PREFIX_FAILED = "f2:"
"""Of a text that also tells of failed messages; releases that do not know it see nothing finished."""


class CommitTracker:
    """
    Finds how far one partition may be committed.

    Kafka commits a position, not single messages: committing 7 says that every
    offset below 7 is done. With offsets 3, 4 and 5 on loan, settling 4 and 5
    moves nothing; settling 3 then allows 6. Gaps between offsets are normal
    (compaction, transaction markers).

    What is finished above the position travels in the commit's metadata text, so
    that the next owner skips it. It may be cut short there: then a message comes
    twice, which consumers must expect anyway.

    So do the attempts of failed messages of ordered queues, and when each is due (in whole seconds,
    never early): `f2:finished;offset.attempt.due,…`, numbers of the second part in hexadecimal.
    """

    def __init__(self, position: int, metadata: str = "") -> None:
        self.next = position
        """The offset to read next."""
        self._open: deque[int] = deque()
        """Received offsets from the lowest unfinished one on, in order."""
        self._done: set[int] = set()
        """Those of `_open` that are finished."""
        self._restored = _decode(position, metadata)
        """Finished by an earlier owner and not yet received by us."""

    def receive(self, offset: int) -> bool:
        """Note that `offset` arrived; False if it was here before or is finished already."""
        if offset < self.next:
            return False
        self.next = offset + 1
        self._open.append(offset)
        if offset in self._restored:
            self._restored.discard(offset)
            self.finish(offset)
            return False
        return True

    def finish(self, offset: int) -> None:
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._done.discard(self._open.popleft())

    @property
    def position(self) -> int:
        """Everything below is finished."""
        return self._open[0] if self._open else self.next

    @property
    def to_skip(self) -> int:
        """Not received yet, and finished by an earlier owner."""
        return len(self._restored)

    @property
    def crowded(self) -> bool:
        """So much is finished above the position that the metadata could soon not hold it, or the memory."""
        if len(self._done) > MAX_DONE:
            return True
        return len(self._done) > 200 and len(self.metadata()) > MAX_METADATA * 3 // 4

    def metadata(self, failed: Mapping[int, Failed] | None = None) -> str:
        """The finished offsets above the position, as ranges relative to it; the lowest ones if too many."""
        finished = self._finished()
        if not failed:
            return _PREFIX + finished if finished else ""
        notes: list[str] = []
        size = 0
        for offset in sorted(o for o in failed if o >= self.position):
            attempt, due = failed[offset]
            note = f"{offset - self.position:x}.{attempt:x}.{-(-due // 1_000_000):x}"
            size += len(note) + 1
            if size > MAX_FAILED:
                break
            notes.append(note)
        return f"{_PREFIX_FAILED}{finished};{','.join(notes)}"

    def _finished(self) -> str:
        position = self.position
        finished = sorted(o for o in self._done | self._restored if o > position)
        if not finished:
            return ""
        parts: list[str] = []
        size = len(_PREFIX)
        start = end = finished[0]
        for offset in [*finished[1:], -1]:
            if offset == end + 1:
                end = offset
                continue
            part = f"{start - position}+{end - start}" if end > start else f"{start - position}"
            size += len(part) + 1
            if size > MAX_METADATA:
                break
            parts.append(part)
            start = end = offset
        return ",".join(parts)


def finished_above(position: int, metadata: str, begin: int = 0) -> int:
    """How many offsets a commit says are finished above its position; those below `begin` are deleted."""
    return sum(offset >= begin for offset in _decode(position, metadata))


def failed_above(position: int, metadata: str) -> dict[int, Failed]:
    """The failed messages that a commit tells of, by offset; none if it is not of our making."""
    if not metadata.startswith(_PREFIX_FAILED):
        return {}
    out: dict[int, Failed] = {}
    try:
        for note in metadata.partition(";")[2].split(","):
            offset, attempt, due = (int(part, 16) for part in note.split("."))
            out[position + offset] = Failed(attempt, due * 1_000_000)
    except ValueError:
        return {}
    return out


def _decode(position: int, metadata: str) -> set[int]:
    """What `metadata` said; nothing if it is not of our making."""
    if not metadata.startswith((_PREFIX, _PREFIX_FAILED)):
        return set()
    out: set[int] = set()
    finished = metadata[len(_PREFIX) :].partition(";")[0]
    try:
        for part in finished.split(",") if finished else ():
            start, _, more = part.partition("+")
            first = position + int(start)
            out.update(range(first, first + int(more or "0") + 1))
    except ValueError:
        return set()
    return out
