from __future__ import annotations

from pathlib import Path

import pytest
from forebay_rolling.checks import by_address, canary
from forebay_rolling.config import Checks
from forebay_rolling.errors import CheckFailed


def test_a_key_that_cannot_be_read_is_a_check_that_failed(tmp_path: Path) -> None:
    """The first one who needs it is a new gateway: everything before it is to go back."""
    ask = by_address("127.0.0.1:9", tmp_path / "key")

    with pytest.raises(CheckFailed, match=r"cannot read checks\.canary_key_file"):
        canary(ask, Checks())
