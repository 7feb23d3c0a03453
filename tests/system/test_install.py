"""What a user installs: all of Forebay, nothing of its tests, and a command that answers at once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.needs import missing_server
from tests.system.harness import FOREBAY

ROOT = Path(__file__).parents[2]
TEST_TOOLS = {"pytest", "pytest-asyncio", "hypothesis", "schemathesis", "mypy", "ruff", "grimp", "py-spy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: building in the checkout leaves a build/ folder, whose old files would go into the wheel.
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("forebay-*.whl")
    return built


def test_the_wheel_has_our_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"forebay", "gateway", "consumers"}
    expected = {
        str(path.relative_to(ROOT))
        for package in ("forebay", "gateway", "consumers")
        for path in (ROOT / package).rglob("*.py")
    }
    assert expected <= names, sorted(expected - names)
    assert "forebay/py.typed" in names
    assert any(name.startswith("forebay/storage/migrations/") for name in names)


def test_a_plain_install_asks_for_no_test_tool(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = metadata.get_all("Requires-Dist") or []
    plain = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in required if "extra ==" not in line}
    assert {"fastapi", "apsw", "sqlalchemy"} <= plain
    assert not plain & TEST_TOOLS


def test_a_plain_install_runs(wheel: Path, tmp_path: Path) -> None:
    """In an empty environment: every package is there, and the command starts."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    done = subprocess.run(
        [home / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary", wheel],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0 and re.search(r"connection|resolve|timed out", done.stderr, re.I):
        missing_server(f"the package index does not answer: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    modules = ["forebay.cli.main", "forebay.wiring", "gateway.app", "consumers.supervisor"]
    code = "; ".join(f"import {module}" for module in modules)
    subprocess.run([home / "bin/python", "-W", "error", "-c", code], cwd=tmp_path, check=True)
    version = subprocess.run([home / "bin/forebay", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("forebay ")
    frozen = subprocess.run([home / "bin/pip", "list", "--format=freeze"], capture_output=True, text=True)
    installed = {line.split("==")[0].lower() for line in frozen.stdout.splitlines()}
    assert not installed & TEST_TOOLS


def test_help_loads_no_framework_and_no_driver() -> None:
    """What makes a command feel slow is what it imports: the heavy parts are loaded by who needs them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", FOREBAY, "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "forebay" in loaded
    assert not loaded & {
        "fastapi",
        "uvicorn",
        "sqlalchemy",
        "pydantic",
        "pika",
        "aiokafka",
        "psycopg",
        "pymysql",
    }
