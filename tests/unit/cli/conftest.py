from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.installation import Installation


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation with a queue "orders", and the environment that points commands to it."""
    site = Installation(tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREBAY_BROKER__URL", f"sqlite:///{tmp_path}/queue.db")
    monkeypatch.setenv("FOREBAY_DATABASE__URL", f"sqlite:///{tmp_path}/forebay.db")
    return site
