"""Stopping is part of the job: what is in flight is answered, what is in hand is settled or handed back."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time

import pytest

from tests.servers.postgres import free_port
from tests.system.harness import Answer, Process, Site, until
from tests.system.harness import http as ask


class SlowPost:
    """A request whose head is sent and whose body is half sent; `finish` sends the rest."""

    def __init__(self, port: int, body: bytes) -> None:
        self._body = body
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = f"POST /v1/queues/flights/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body[: len(body) // 2])

    def finish(self) -> Answer:
        self._socket.sendall(self._body[len(self._body) // 2 :])
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        answer = Answer(response.status, dict(response.headers.items()), response.read())
        self._socket.close()
        return answer


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionError:
        return True
    return False


def test_a_gateway_answers_what_is_in_flight_before_it_ends(site: Site) -> None:
    gateway = site.gateway()
    slow = [SlowPost(site.port, b"body %03d" % n) for n in range(50)]
    # One more request, answered: the gateway has read what was sent before it.
    assert site.post("flights", b"after the slow ones").status == 202

    gateway.signal(signal.SIGTERM)
    until(lambda: refuses(site.port), what="the gateway to stop listening")
    answers = [post.finish() for post in slow]

    assert [a.status for a in answers] == [202] * 50
    assert gateway.wait(within=15) == 0, gateway.tail()
    site.consumer("flights").until(lambda: site.stored() == 51, what="51 rows")


def test_a_gateway_under_load_drops_no_request(site: Site) -> None:
    """Every request that a client began before the gateway stopped listening has an answer, and is stored."""
    gateway = site.gateway()
    accepted: set[str] = set()
    dropped: list[str] = []
    stopping = threading.Event()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        with contextlib.closing(connection):
            for count in range(1_000_000):
                try:
                    connection.request("POST", "/v1/queues/flights/messages", f"{number}/{count}".encode())
                    response = connection.getresponse()
                    response.read()
                except (ConnectionError, http.client.BadStatusLine) as error:
                    # An idle connection may be closed at any time, and a request that crosses with that is
                    # the client's to repeat (RFC 9112, 9.3.1); on a connection just opened it is a dropped
                    # one, and so it is when nobody asked the gateway to stop.
                    if not stopping.is_set() or (
                        count == 0 and not isinstance(error, ConnectionRefusedError)
                    ):
                        dropped.append(f"{number}/{count}: {error!r}")
                    return
                if response.status != 202:
                    assert (response.status, bool(response.headers["Retry-After"])) == (503, True)
                    return
                accepted.add(response.headers["Location"].rpartition("/")[2])

    clients = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in clients:
        thread.start()
    until(lambda: len(accepted) > 500, what="500 messages")
    stopping.set()
    gateway.signal(signal.SIGTERM)
    for thread in clients:
        thread.join(30)

    assert gateway.wait(within=15) == 0, gateway.tail()
    assert not dropped
    consumer = site.consumer("flights")
    consumer.until(lambda: site.stored() >= len(accepted), what="every accepted message")
    stored = {str(row[0]) for row in site.sql("select id from messages")}
    assert accepted <= stored


def test_a_consumer_that_is_stopped_hands_back_uncounted(site: Site) -> None:
    site.settings["QUEUE_DEFAULTS__RETRY__MAX_ATTEMPTS"] = "1"
    site.settings["QUEUE_DEFAULTS__BATCH_SIZE"] = "50"
    gateway = site.gateway()
    lines = "\n".join(f'{{"n": {n}}}' for n in range(5_000)).encode()
    sent = site.run("send", "flights", "--ndjson", "-", "--url", site.url, stdin=lines)
    assert sent.returncode == 0, sent.stderr
    consumer = site.consumer("flights")
    consumer.until(lambda: site.stored() > 0, what="the first rows")

    assert consumer.stop(within=15) == 0, consumer.tail()

    left = 5_000 - site.stored()
    assert left > 0, "the consumer was done before it was stopped; the test proves nothing"
    again = site.consumer("flights")
    began = time.monotonic()
    again.until(lambda: site.stored() == 5_000, what="the rest")
    # Handed back, not left to the end of a lease of 30 s.
    assert time.monotonic() - began < 20
    assert site.sql("select max(attempts) from messages")[0][0] == 1
    assert site.sql("select count(*) from dead_letters")[0][0] == 0
    assert again.stop() == 0
    assert gateway.stop() == 0


def stored_in_dev(site: Site, id: str) -> bool:
    answer = ask("GET", f"{site.url}/v1/messages/{id}")
    return answer.status == 200 and answer.json["state"] == "stored"


def test_dev_drains_on_ctrl_c_and_starts_again(bare_site: Site) -> None:
    dev = bare_site.dev()
    answer = bare_site.post("orders", b'{"order": 1}')
    assert answer.status == 202
    dev.until(lambda: stored_in_dev(bare_site, answer.json["id"]), what="the message to be stored")

    dev.signal(signal.SIGINT)
    assert dev.wait(within=15) == 0, dev.tail()

    again = bare_site.dev()
    assert stored_in_dev(bare_site, answer.json["id"])
    assert again.stop() == 0, again.tail()


STUCK = """
import time
def handle(message):
    open("handling", "w").close()
    time.sleep(600)
"""


def test_ctrl_c_twice_ends_what_hangs_and_loses_nothing(bare_site: Site) -> None:
    """A handler that never returns: the second Ctrl-C does not wait for it; its message is still there."""
    (bare_site.folder / "stuck.py").write_text(STUCK)
    dev = bare_site.dev("--handler", "orders=stuck:handle", PYTHONPATH=str(bare_site.folder))
    answer = bare_site.post("orders", b"stuck")
    assert answer.status == 202
    dev.until((bare_site.folder / "handling").exists, what="the handler to be called")

    dev.signal(signal.SIGINT)
    until(lambda: refuses(bare_site.port), what="the gateway to stop listening")
    assert dev.running
    dev.signal(signal.SIGINT)
    assert dev.wait(within=5) != 0

    # The second start finds the message and gives it to another handler.
    (bare_site.folder / "fine.py").write_text("def handle(message):\n    pass\n")
    fine: Process = bare_site.dev("--handler", "orders=fine:handle", PYTHONPATH=str(bare_site.folder))

    def done() -> bool:
        status = ask("GET", f"{bare_site.url}/v1/messages/{answer.json['id']}")
        return status.status == 200 and status.json["state"] == "done"

    fine.until(done, within=45, what="the message to be handled")
    assert fine.stop() == 0, fine.tail()


def test_sigterm_before_anything_happened(site: Site) -> None:
    assert site.gateway().stop(within=10) == 0
    consumer = site.consumer()
    consumer.until(
        lambda: site.sql(
            "select 1 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ),
        what="the consumer to connect",
    )
    assert consumer.stop(within=10) == 0, consumer.tail()


@pytest.mark.parametrize("command", ["gateway", "consume"])
def test_a_process_that_waits_for_its_broker_ends_when_told(site: Site, command: str) -> None:
    """As a deploy does while the broker is away; the wait has no end of its own."""
    site.settings["BROKER__URL"] = f"amqp://127.0.0.1:{free_port()}/"
    process = site.start(command, *(["--port", str(site.port)] if command == "gateway" else []), log=command)
    process.until(lambda: "no connection to RabbitMQ" in process.output, what="a try")

    assert process.stop() == 0, process.tail()
