"""What every test may ask for: servers, marked by what they need, and a plain word about what did not run."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.needs import missing_privilege, missing_server
from tests.servers.mariadb import MariaDB, MariaDBNotInstalled
from tests.servers.postgres import Postgres, PostgresNotInstalled

HERE = Path(__file__).parent

# What a script starts in its background ignores Ctrl-C, and so does all that is started there.
# Our tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_DISK = 8 * 2**20

# Failures inside the contract suites show their values too. Here, before anything imports them.
pytest.register_assert_rewrite("forebay.testing.broker_contract", "forebay.testing.sink_contract")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that runs a command in this process leaves no logging to a stream that is closed by now."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    logging.getLogger("uvicorn.access").disabled = False


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of our own, shared by the session; a test that stops it starts it again."""
    try:
        # Without fsync: no test cuts the power of this server, and the disk is shared with the queue's.
        server = Postgres(durable=False)
    except PostgresNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of an empty database that nobody else uses."""
    return postgres.create_database()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB of our own, shared by the session; a test that stops it starts it again."""
    try:
        server = MariaDB(durable=False)
    except MariaDBNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield server


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> str:
    """The URL of an empty database that nobody else uses."""
    return mariadb.create_database()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of SMALL_DISK bytes, or of as many as the test's parameter says."""
    size = getattr(request, "param", SMALL_DISK)
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        missing_privilege("mounting a small filesystem for the full disk needs root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests get the marker of what they use, so that `-m "not external"` and `-m "not system"` just work."""
    for item in items:
        if {"postgres", "mariadb"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("external")
        if HERE / "system" in item.path.parents:
            item.add_marker("system")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason why something did not run."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        if isinstance(report.longrepr, tuple):
            reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("not run here", sep="-")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count} x {reason}")
