from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Site

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, postgres_url: str) -> Iterator[Site]:
    """An installation on PostgreSQL with its tables made; its processes are gone at the end."""
    site = Site(tmp_path, postgres_url)
    site.migrate()
    yield site
    site.close()


@pytest.fixture
def mariadb_site(tmp_path: Path, mariadb_url: str) -> Iterator[Site]:
    """An installation on MariaDB with its tables made."""
    site = Site(tmp_path, mariadb_url)
    site.migrate()
    yield site
    site.close()


@pytest.fixture
def bare_site(tmp_path: Path) -> Iterator[Site]:
    """An installation on SQLite, without tables."""
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'forebay.db'}")
    yield site
    site.close()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git knows, sharing the virtual environment of this checkout."""
    copy = tmp_path / "forebay"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    # Make must not find the copy newer than what is installed, and install the copy instead.
    for name in ("pyproject.toml", "scripts/make-venv"):
        os.utime(copy / name, (0, 0))
    for stamp in (".made", ".installed"):
        if not (ROOT / ".venv" / stamp).exists():
            (ROOT / ".venv" / stamp).touch()
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy
