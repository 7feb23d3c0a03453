from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import rabbitmq as rabbitmq_servers
from tests.needs import missing_server
from tests.servers.kafka import Kafka, KafkaCluster, KafkaNotInstalled, find_jars, find_java, shared
from tests.servers.rabbitmq import RabbitMQCluster
from tests.system.harness import Site

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, postgres_url: str) -> Iterator[Site]:
    """An installation on PostgreSQL with its tables made; its processes are gone at the end."""
    site = Site(tmp_path, postgres_url)
    site.migrate()
    yield site
    site.close()


@pytest.fixture(scope="session")
def rabbitmq_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    with rabbitmq_servers.running(tmp_path_factory, 1) as cluster:
        yield cluster


@pytest.fixture
def rabbitmq(rabbitmq_cluster: RabbitMQCluster) -> Iterator[RabbitMQCluster]:
    """A RabbitMQ that nobody stops during this test; no longer, since others wait to have it alone."""
    with rabbitmq_cluster.shared_with_others():
        yield rabbitmq_cluster


@pytest.fixture(scope="session")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    try:
        find_java(), find_jars()
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield shared(tmp_path_factory.getbasetemp().parent, os.getppid(), 1)
    else:
        with Kafka() as server:
            yield server


@pytest.fixture
def kafka(kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """A Kafka that nobody stops during this test."""
    with kafka_cluster.shared_with_others():
        yield kafka_cluster


@pytest.fixture(params=["sqlite", "rabbitmq", "kafka"])
def broker(request: pytest.FixtureRequest, site: Site) -> str:
    """
    Runs a test on each broker; the name of that.

    The site gets the broker's URL and a queue of a name that nobody else uses.
    """
    name: str = request.param
    site.queues = queue = f"q-{secrets.token_hex(4)}"
    if name == "rabbitmq":
        server: RabbitMQCluster = request.getfixturevalue("rabbitmq")
        # Its own delay queues: what other tests let wait there is not ours.
        site.settings |= {"BROKER__URL": server.url, "BROKER__RABBITMQ__PREFIX": f"{queue}."}
    elif name == "kafka":
        cluster: KafkaCluster = request.getfixturevalue("kafka")
        site.settings |= {
            "BROKER__URL": cluster.url,
            "BROKER__KAFKA__PARTITIONS": "3",
            "BROKER__KAFKA__RETRY_DELAYS": "1",
            "BROKER__KAFKA__SESSION_TIMEOUT": "6s",  # the least that a server takes unless told
        }
    return name


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
