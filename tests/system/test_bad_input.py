"""Bad input gets a clear answer, on the wire and on the command line, and loses nothing."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Answer, Site, until


def raw(port: int, request: bytes, *, hang_up: bool = False) -> Answer | None:
    """Send bytes as they are; None when the server closed without an answer, or we hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(request)
        if hang_up:
            return None
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
        except (http.client.BadStatusLine, ConnectionError):
            return None
        return Answer(response.status, dict(response.headers.items()), response.read())


def post(*lines: str, body: bytes = b"") -> bytes:
    head = ["POST /v1/queues/orders/messages HTTP/1.1", "Host: x", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def problem(answer: Answer | None) -> dict[str, object]:
    assert answer is not None, "the connection was closed without an answer"
    content_type = {name.lower(): value for name, value in answer.headers.items()}["content-type"]
    assert content_type.startswith("application/problem+json"), (answer.status, answer.headers, answer.body)
    document: dict[str, object] = answer.json
    assert {"type", "title", "status", "detail"} <= set(document)
    assert document["status"] == answer.status
    return document


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One gateway for all bad requests: none of them may harm it."""
    site = Site(tmp_path_factory.mktemp("bad"), database_url="sqlite:///unused.db", queues="orders")
    site.gateway()
    yield site
    site.close()


def waiting(site: Site) -> int:
    answer = site.queue("orders")
    count: int = answer["waiting"]
    return count


BAD_REQUESTS = {
    "a negative Content-Length": (post("Content-Length: -5", body=b"hello"), 400),
    "a Content-Length that is no number": (post("Content-Length: five", body=b"hello"), 400),
    "two Content-Lengths": (post("Content-Length: 5", "Content-Length: 6", body=b"hello"), 400),
    "a bad chunk size": (post("Transfer-Encoding: chunked", body=b"xyz\r\nhello\r\n0\r\n\r\n"), 400),
    "no HTTP at all": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "a body above the limit": (post("Content-Length: 900001"), 413),
    "a bad delay": (post("Content-Length: 0", "Forebay-Delay: soon"), 400),
    "an empty idempotency key": (post("Content-Length: 0", "Idempotency-Key:"), 400),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_a_problem_document_and_stores_nothing(gateway: Site, name: str) -> None:
    request, status = BAD_REQUESTS[name]
    before = waiting(gateway)

    answer = raw(gateway.port, request)

    assert problem(answer)["status"] == status
    assert waiting(gateway) == before
    assert gateway.post("orders", b"good").status == 202


@pytest.mark.parametrize("name", ["Orders", "or_ders", "-orders", "o" * 64, "or.ders"])
def test_an_invalid_queue_name_is_400(gateway: Site, name: str) -> None:
    answer = gateway.post(name, b"x")

    assert answer.status == 400
    assert problem(answer)["type"] == "/problems/invalid-queue-name"


def test_a_path_that_no_queue_name_can_make_is_a_problem_document(gateway: Site) -> None:
    answer = gateway.post("or%20ders", b"x")

    assert answer.status in (400, 404)
    assert "queue" in str(problem(answer)["detail"])


def test_an_undeclared_queue_is_404_with_what_to_write(gateway: Site) -> None:
    answer = gateway.post("oders", b"x")

    assert answer.status == 404
    detail = str(problem(answer)["detail"])
    assert "did you mean 'orders'" in detail.lower()
    assert "FOREBAY_QUEUE_NAMES=" in detail


def test_a_truncated_body_stores_nothing(gateway: Site) -> None:
    before = waiting(gateway)

    raw(gateway.port, post("Content-Length: 100", body=b"only this"), hang_up=True)

    # Requests of one gateway are handled as they come: this one's 202 is after that one's end.
    assert gateway.post("orders", b"good").status == 202
    assert waiting(gateway) == before + 1


def test_a_chunked_body_that_stops_stores_nothing(gateway: Site) -> None:
    before = waiting(gateway)

    raw(gateway.port, post("Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"), hang_up=True)

    assert gateway.post("orders", b"good").status == 202
    assert waiting(gateway) == before + 1


# ---- the command line


def test_gateway_and_consume_without_urls_exit_2_with_examples(bare_site: Site) -> None:
    for command in ("gateway", "consume", "migrate"):
        done = bare_site.run(command, unset=("BROKER__URL", "DATABASE__URL"))
        assert done.returncode == 2, (command, done)
        examples = [line for line in done.stderr.splitlines() if "://" in line]
        assert len(examples) >= 3, (command, done.stderr)
        assert not list(bare_site.folder.glob("**/*.db"))


def test_an_unknown_setting_exits_2_with_a_suggestion(bare_site: Site) -> None:
    done = bare_site.run("gateway", env={"FOREBAY_GATWAY__PORT": "1"})

    assert done.returncode == 2
    assert "FOREBAY_GATWAY__PORT" in done.stderr
    assert "gateway" in done.stderr.replace("GATWAY", "").lower()


def test_an_invalid_queue_name_in_the_settings_exits_2(bare_site: Site) -> None:
    done = bare_site.run("gateway", env={"FOREBAY_QUEUE_NAMES": "Or_ders"})

    assert done.returncode == 2
    assert "Or_ders" in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "postgresql://", "oracle://host/db", "postgresql://h:port/db"])
def test_an_unreadable_database_url_exits_2(bare_site: Site, url: str) -> None:
    for command in ("consume", "migrate"):
        done = bare_site.run(command, env={"FOREBAY_DATABASE__URL": url})
        assert done.returncode == 2, (command, done)
        assert "Traceback" not in done.stderr
        assert "database" in done.stderr.lower()


def test_a_password_in_an_unreadable_url_is_not_printed(bare_site: Site) -> None:
    done = bare_site.run("migrate", env={"FOREBAY_DATABASE__URL": "postgresql://me:s3cret@h:port/db"})

    assert done.returncode == 2
    assert "s3cret" not in done.stderr + done.stdout


def test_a_queue_file_that_is_not_a_database_is_named_and_left_alone(bare_site: Site) -> None:
    precious = b"my only copy of something else\n" * 100
    bare_site.queue_file.write_bytes(precious)

    done = bare_site.run("gateway", "--port", str(bare_site.port))

    assert done.returncode == 2, done
    assert str(bare_site.queue_file) in done.stderr
    assert "Traceback" not in done.stderr
    assert bare_site.queue_file.read_bytes() == precious


def test_a_database_of_somebody_else_is_no_queue(bare_site: Site) -> None:
    with sqlite3.connect(bare_site.queue_file) as database:
        database.execute("create table precious (id)")

    done = bare_site.run("gateway", "--port", str(bare_site.port))

    assert done.returncode == 2, done
    assert str(bare_site.queue_file) in done.stderr


def test_a_busy_port_is_named_with_its_flag(bare_site: Site) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", bare_site.port))
        busy.listen()
        done = bare_site.run("gateway", "--port", str(bare_site.port))

    assert done.returncode in (2, 3), done
    assert str(bare_site.port) in done.stderr
    assert "--port" in done.stderr


def test_beyond_loopback_without_authentication_is_refused(bare_site: Site) -> None:
    done = bare_site.run("gateway", "--host", "0.0.0.0", "--port", str(bare_site.port))

    assert done.returncode == 2, done
    assert "--insecure-no-auth" in done.stderr


@pytest.mark.parametrize("version", ["behind", "ahead"])
def test_a_consumer_refuses_a_schema_of_another_version(site: Site, version: str) -> None:
    """It exits 3 and says what to run, rather than write to tables that it does not know."""
    if version == "behind":
        site.sql("drop schema public cascade")
        site.sql("create schema public")
    else:
        ((table,),) = site.sql(
            "select table_name from information_schema.columns where column_name = 'version_num'"
        )
        site.sql(f"update {table} set version_num = 'from_the_future'")
    site.queues = "orders"
    site.gateway()
    assert site.post("orders", b"precious").status == 202

    consumer = site.consumer("orders")

    assert consumer.wait(within=20) == 3, consumer.tail()
    assert "forebay migrate" in consumer.output or version == "ahead"
    assert "Traceback" not in consumer.output
    assert site.queue("orders")["waiting"] == 1


# ---- a full disk


@pytest.mark.parametrize("small_disk", [48 * 2**20], indirect=True)
def test_a_full_disk_refuses_and_still_drains(site: Site, small_disk: Path) -> None:
    """Publishing ends with a definite 503; what was accepted reaches the database and leaves the queue."""
    site.queues = "orders"
    site.settings |= {
        "BROKER__URL": f"sqlite:///{small_disk / 'queue.db'}",
        "BROKER__SQLITE__BALLAST_BYTES": "8MiB",
        "BROKER__SQLITE__MIN_FREE_BYTES": "0",
    }
    gateway = site.gateway()
    body = json.dumps({"padding": "x" * 200_000}).encode()
    accepted = 0
    while (answer := site.post("orders", body)).status == 202:
        accepted += 1
        assert accepted < 1_000
    assert answer.status == 503
    assert problem(answer)["type"] == "/problems/queue-full"
    assert {name.lower() for name in answer.headers} >= {"retry-after"}
    assert accepted > 20
    # Somebody else takes the last bytes.
    with (small_disk / "somebody-elses").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass

    consumer = site.consumer("orders")

    consumer.until(lambda: site.stored() == accepted, what=f"{accepted} rows")
    until(lambda: site.queue("orders")["waiting"] == 0, what="an empty queue")
    until(lambda: not site.queue("orders").get("in_hand"), what="nothing in hand")
    assert consumer.stop() == 0
    (small_disk / "somebody-elses").unlink()
    until(lambda: site.post("orders", b"after").status == 202, what="publishing to work again")
    assert gateway.stop() == 0
