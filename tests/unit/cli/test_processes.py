"""dev, gateway, consume and migrate as real processes: they start, work, drain and say why not."""

from __future__ import annotations

import signal
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from .processes import DEADLINE, Running, forebay

pytestmark = pytest.mark.system

URLS = {
    "FOREBAY_BROKER__URL": "sqlite:///q.db",
    "FOREBAY_DATABASE__URL": "sqlite:///d.db",
    "FOREBAY_QUEUE_NAMES": "orders",
}


def post(url: str, body: bytes, queue: str = "orders") -> int:
    request = urllib.request.Request(f"{url}/v1/queues/{queue}/messages", data=body, method="POST")
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return int(answer.status)


def stored(file: Path) -> list[tuple[str, bytes]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute("SELECT queue, body FROM messages ORDER BY stored_at").fetchall()
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


# ---- dev


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dev_stores_what_is_posted_and_drains_on_a_signal(number: int, tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        url = dev.url()
        assert dev.until(r"curl -i (http\S+)")[1] == f"{url}/v1/queues/orders/messages"
        assert post(url, b'{"id": 1}') == 202
        wait_for(lambda: stored(tmp_path / "forebay-data" / "forebay.db") == [("orders", b'{"id": 1}')])

        assert dev.end(number) == 0
        dev.until('"event": "stopped"')


def test_dev_listens_beyond_loopback_only_when_told_that_this_is_meant(tmp_path: Path) -> None:
    refused = forebay("dev", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path)
    assert (refused.returncode, "--insecure-no-auth" in refused.stderr) == (2, True)

    args = ("dev", "--host", "0.0.0.0", "--insecure-no-auth", "--port", "0")
    with Running(*args, cwd=tmp_path) as dev:
        dev.until("Forebay is ready on")
        assert dev.end(signal.SIGTERM) == 0


def test_dev_starts_again_and_knows_its_queues(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        assert post(dev.url(), b"1", queue="clicks") == 202
        assert dev.end(signal.SIGTERM) == 0

    with (
        Running("dev", "--port", "0", cwd=tmp_path) as again,
        urllib.request.urlopen(f"{again.url()}/v1/queues", timeout=DEADLINE) as answer,
    ):
        assert b"clicks" in answer.read()


def test_a_busy_port_is_named_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = forebay("dev", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


def test_a_second_dev_in_the_same_folder_is_told_apart(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        dev.url()
        done = forebay("dev", "--port", "0", cwd=tmp_path)
        assert done.returncode == 3
        assert f"another `forebay dev` (process {dev.process.pid})" in done.stderr


def test_dev_killed_without_a_word_starts_again_with_what_it_had(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        assert post(dev.url(), b"kept") == 202
        dev.end(signal.SIGKILL)

    with Running("dev", "--port", "0", cwd=tmp_path) as again:
        again.url()
        wait_for(lambda: stored(tmp_path / "forebay-data" / "forebay.db") == [("orders", b"kept")])


def test_a_queue_file_that_is_no_database_ends_dev_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "forebay-data").mkdir()
    (tmp_path / "forebay-data" / "queue.db").write_bytes(b"not a database at all" * 100)
    done = forebay("dev", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "queue.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_handler_gets_the_message_and_reload_brings_new_code_without_refusing_a_request(
    tmp_path: Path,
) -> None:
    code = tmp_path / "shop.py"
    code.write_text("def handle(message):\n    print('first', message.body.decode(), flush=True)\n")
    with Running("dev", "--port", "0", "--handler", "orders=shop:handle", "--reload", cwd=tmp_path) as dev:
        url = dev.url()
        assert post(url, b"one") == 202
        dev.until("first one")

        code.write_text(code.read_text().replace("first", "second"))
        dev.until("drained")
        # The port is held open: these wait for the new process instead of being refused.
        assert [post(url, f"during-{i}".encode()) for i in range(3)] == [202] * 3
        dev.until("second during-2")

        assert dev.end(signal.SIGTERM) == 0


def test_the_child_of_reload_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", "--reload", cwd=tmp_path) as dev:
        url = dev.url()
        dev.end(signal.SIGKILL)

        def gone() -> bool:
            try:
                urllib.request.urlopen(f"{url}/livez", timeout=DEADLINE).close()
            except OSError:
                return True
            return False

        wait_for(gone)


@pytest.mark.parametrize("handler", ["orders", "orders=nosuch:handle", "orders=shop"])
def test_a_handler_that_cannot_be_found_ends_dev_with_2(handler: str, tmp_path: Path) -> None:
    done = forebay("dev", "--port", "0", "--handler", handler, cwd=tmp_path)
    assert done.returncode == 2
    assert "orders" in done.stderr or "nosuch" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_taken_from_the_folder_of_dev_is_said(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        dev.url()
    neither = forebay("queues", cwd=tmp_path)
    one = forebay("queues", cwd=tmp_path, env={"FOREBAY_DATABASE__URL": "sqlite:///d.db"})

    assert "(broker.url and database.url are not set: looking at" in neither.stderr
    assert "(broker.url is not set: looking at" in one.stderr


def test_config_init_writes_the_queues_that_dev_has_seen(tmp_path: Path) -> None:
    with Running("dev", "--port", "0", cwd=tmp_path) as dev:
        assert post(dev.url(), b"1", queue="clicks") == 202
        assert forebay("config", "init", cwd=tmp_path).returncode == 0
    text = (tmp_path / "forebay.toml").read_text()
    assert 'queue_names = ["clicks"]' in text
    assert "[queues.clicks]" in text


# ---- gateway, consume, migrate


def test_gateway_and_consumer_work_side_by_side_and_drain(tmp_path: Path) -> None:
    assert forebay("migrate", cwd=tmp_path, env=URLS).returncode == 0
    with (
        Running("gateway", "--port", "0", cwd=tmp_path, env=URLS) as gateway,
        Running("consume", cwd=tmp_path, env=URLS) as consumer,
    ):
        assert post(gateway.url(), b"x") == 202
        wait_for(lambda: stored(tmp_path / "d.db") == [("orders", b"x")])
        assert consumer.end(signal.SIGTERM) == 0
        assert gateway.end(signal.SIGTERM) == 0
        consumer.until('"event": "stopped"')
        gateway.until('"event": "stopped"')


def test_the_gateway_works_without_a_database(tmp_path: Path) -> None:
    env = {k: v for k, v in URLS.items() if "DATABASE" not in k}
    with Running("gateway", "--port", "0", cwd=tmp_path, env=env) as gateway:
        assert post(gateway.url(), b"x") == 202
        assert gateway.end(signal.SIGTERM) == 0


def test_the_start_names_the_broker_and_says_when_it_made_the_file(tmp_path: Path) -> None:
    """A mistyped path would otherwise be a queue that nobody reads."""
    forebay("migrate", cwd=tmp_path, env=URLS)
    mistyped = ("gateway", "--port", "0", "--broker-url", "sqlite:///nosuchdir/q.db")
    with Running(*mistyped, cwd=tmp_path, env=URLS) as gateway:
        made = gateway.until("made a new queue file")
        assert str(tmp_path / "nosuchdir" / "q.db") in made.string
        gateway.until("is ready; messages wait in sqlite:///.*nosuchdir/q.db")
    with Running(*mistyped, cwd=tmp_path, env=URLS) as again:
        again.until("is ready")
        assert "made a new queue file" not in again.output
    with Running("consume", cwd=tmp_path, env=URLS) as consumer:
        consumer.until("made a new queue file")
        consumer.until("consuming orders; messages wait in sqlite:///.*q.db")


def test_several_workers_get_the_flags_and_drain(tmp_path: Path) -> None:
    env = {"FOREBAY_QUEUE_NAMES": "orders"}
    with Running(
        "gateway", "--port", "0", "--workers", "2", "--broker-url", "sqlite:///q.db", cwd=tmp_path, env=env
    ) as gateway:
        url = gateway.url()
        assert [post(url, b"x") for _ in range(4)] == [202] * 4
        assert gateway.end(signal.SIGTERM) == 0
        gateway.until('"event": "stopped"')


def test_a_consumer_before_migrate_says_what_to_run_and_exits_with_3(tmp_path: Path) -> None:
    done = forebay("consume", cwd=tmp_path, env=URLS)
    assert done.returncode == 3
    assert "run `forebay migrate`" in done.stderr
    assert not (tmp_path / "d.db").exists()


def test_a_consumer_of_a_newer_schema_exits_with_3(tmp_path: Path) -> None:
    forebay("migrate", cwd=tmp_path, env=URLS)
    connection = sqlite3.connect(tmp_path / "d.db")
    connection.execute("UPDATE forebay_schema_version SET version_num = '9999'")
    connection.commit()
    connection.close()

    done = forebay("consume", cwd=tmp_path, env=URLS)

    assert done.returncode == 3
    assert "newer release" in done.stderr


def test_a_consumer_waits_for_a_database_that_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    env = URLS | {"FOREBAY_DATABASE__URL": f"postgresql://u:pa55@127.0.0.1:{port}/x"}
    with Running("consume", cwd=tmp_path, env=env) as consumer:
        consumer.until("database unreachable, trying again")
        assert consumer.end(signal.SIGTERM) == 0
        assert "pa55" not in consumer.output


def test_a_batch_that_is_tried_again_is_said_in_our_words_only(tmp_path: Path) -> None:
    forebay("migrate", cwd=tmp_path, env=URLS)
    env = URLS | {"FOREBAY_DATABASE__LOCK_TIMEOUT": "50ms"}
    with (
        Running("gateway", "--port", "0", cwd=tmp_path, env=env) as gateway,
        Running("consume", cwd=tmp_path, env=env) as consumer,
    ):
        url = gateway.url()
        consumer.until("consuming orders")
        lock = sqlite3.connect(tmp_path / "d.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        assert post(url, b"x") == 202
        consumer.until('"attempt": 2.*"writing a batch again"')
        lock.close()
        wait_for(lambda: stored(tmp_path / "d.db") == [("orders", b"x")])
        assert consumer.end(signal.SIGTERM) == 0
        consumer.until('"event": "stopped"')
        assert "stamina" not in consumer.output


def test_a_consumer_serves_health_and_figures(tmp_path: Path) -> None:
    forebay("migrate", cwd=tmp_path, env=URLS)
    # A port by its number: with 0 a second listener in the process would go unnoticed.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Running("consume", "--port", str(port), cwd=tmp_path, env=URLS) as consumer:
        assert consumer.until(r'"port": (\d+)')[1] == str(port)
        consumer.until("consuming orders")

        def ready() -> bool:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE).close()
            except OSError:
                return False
            return True

        wait_for(ready)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            assert b"forebay_consumer_" in answer.read()
        assert consumer.end(signal.SIGTERM) == 0


def test_a_second_signal_ends_a_process_that_cannot_drain(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef handle(message):\n    print('in hand', flush=True)\n    time.sleep(60)\n"
    )
    with Running("dev", "--port", "0", "--handler", "orders=slow:handle", cwd=tmp_path) as dev:
        post(dev.url(), b"1")
        dev.until("in hand")
        dev.process.send_signal(signal.SIGINT)
        dev.until("stopping; finishing")
        assert dev.end(signal.SIGINT) == 130


def test_migrating_a_database_that_is_away_exits_with_7(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    done = forebay("migrate", "--database-url", f"postgresql://u:pa55@127.0.0.1:{port}/x", cwd=tmp_path)
    assert done.returncode == 7
    assert "pa55" not in done.stderr


def test_a_named_queue_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    done = forebay("consume", "order", cwd=tmp_path, env=URLS)
    assert done.returncode == 2
    assert "did you mean 'orders'?" in done.stderr


def test_migrating_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    first, second = (forebay("migrate", cwd=tmp_path, env=URLS) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "0001" in first.stdout
    assert "nothing to do" in second.stdout


# ---- the admin API


def ask(url: str, token: str) -> int:
    request = urllib.request.Request(f"{url}/admin/v1/status", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return int(answer.status)


def test_dev_serves_the_admin_api_with_a_token_that_only_its_owner_can_read(tmp_path: Path) -> None:
    kept = tmp_path / "forebay-data" / "admin-token"
    seen = []
    for _ in range(2):
        with Running("dev", "--port", "0", cwd=tmp_path) as dev:
            url = dev.until(r"operators' API +(http://127\.0\.0\.1:\d+)/admin")[1]
            seen.append(kept.read_text().strip())
            assert ask(url, seen[-1]) == 200
            assert dev.end(signal.SIGTERM) == 0
    assert seen[0] == seen[1]
    assert kept.stat().st_mode & 0o777 == 0o600


def test_admin_makes_a_token_where_none_is_set_and_refuses_to_beyond_loopback(tmp_path: Path) -> None:
    forebay("migrate", cwd=tmp_path, env=URLS)
    with Running("admin", "--port", "0", cwd=tmp_path, env=URLS) as admin:
        url = admin.until(r"(http://\S+) is ready")[1]
        token = admin.until(r"until this process ends it is (\S+)")[1]
        assert ask(url, token) == 200
        assert admin.end(signal.SIGTERM) == 0

    refused = forebay("admin", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path, env=URLS)
    assert refused.returncode == 2
    assert "no token is set" in refused.stderr
