from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Site


@pytest.fixture
def site(tmp_path: Path, postgres_url: str) -> Iterator[Site]:
    """An installation on PostgreSQL with its tables made; its processes are gone at the end."""
    site = Site(tmp_path, postgres_url)
    site.migrate()
    yield site
    site.close()


@pytest.fixture
def bare_site(tmp_path: Path) -> Iterator[Site]:
    """An installation on SQLite, without tables."""
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'forebay.db'}")
    yield site
    site.close()
