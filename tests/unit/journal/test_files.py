"""Whose a journal file is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from forebay.journal.files import JournalFile, claim_own


def test_a_file_is_taken_by_one_and_free_when_that_lets_go(tmp_path: Path) -> None:
    first, second = claim_own(tmp_path), claim_own(tmp_path)
    assert [first.file.number, second.file.number] == [1, 2]
    assert first.file.owned()
    assert first.file.claim() is None

    first.release()
    assert not first.file.owned()
    again = claim_own(tmp_path)
    assert again.file.number == 1
    again.release()
    second.release()


def test_who_only_looks_keeps_nobody_from_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that is restarted may not get its own journal back."""
    file = JournalFile(tmp_path, 1)
    file.lock.touch()
    looking = os.open(file.lock, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    owned = JournalFile.owned

    def seen(self: JournalFile) -> bool:
        found = owned(self)
        os.close(looking)
        return found

    monkeypatch.setattr(JournalFile, "owned", seen)
    claim = file.claim()
    assert claim is not None
    claim.release()
