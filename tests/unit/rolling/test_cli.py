from __future__ import annotations

from pathlib import Path

import pytest
from forebay_rolling.cli import main
from forebay_rolling.state import Store

from tests.unit.rolling.test_config import GOOD


def test_what_nobody_thought_of_is_not_taken_for_gone_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 would tell a deployer of several hosts that what ran before runs again."""
    config = tmp_path / "rolling.toml"
    config.write_text(GOOD.replace("/var/lib/forebay/rolling", str(tmp_path / "state")))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "read", full)

    code = main(["--config", str(config), "smoke"])

    assert code == 3
    assert "broken off: [Errno 28] No space left on device; `roll status` shows" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "roll.log").mkdir()

    Store(tmp_path).say("all instances run 2")

    assert capsys.readouterr().err == "all instances run 2\n"
