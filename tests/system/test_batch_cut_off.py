"""A batch that is cut off half-way is sent again as a whole, and every message takes effect once."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator

from tests.system.harness import Site
from tests.system.harness import http as ask

COUNT = 3_000
LINES = [b'{"n": %d}\n' % n for n in range(COUNT)]
HEADERS = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "import-7"}


def test_the_gateway_killed_in_the_middle_of_a_batch(site: Site, broker: str) -> None:
    queue = site.queues
    gateway = site.gateway()
    half = threading.Event()
    go_on = threading.Event()

    def upload() -> Iterator[bytes]:
        yield b"".join(LINES[: COUNT // 2])
        half.set()
        go_on.wait(30)
        yield b"".join(LINES[COUNT // 2 :])

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
        try:
            connection.request("POST", f"/v1/queues/{queue}/batch", upload(), HEADERS, encode_chunked=True)
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return  # as it should be: the gateway is dead
        finally:
            connection.close()
        raise AssertionError("the gateway was killed and answered all the same")

    sending = threading.Thread(target=send)
    sending.start()
    assert half.wait(30)
    gateway.until(
        lambda: ask("GET", f"{site.url}/v1/queues/{queue}").json["waiting"] or broker != "sqlite",
        what="the first messages in the queue",
    )
    gateway.kill()
    go_on.set()
    sending.join(30)
    site.gateway()

    again = ask("POST", f"{site.url}/v1/queues/{queue}/batch", b"".join(LINES), HEADERS, timeout=60)
    consumer = site.consumer(queue)

    assert (again.status, again.json["counts"]["ok"]) == (202, COUNT)
    consumer.until(lambda: site.stored() == COUNT, what="all messages in the database", within=60)
    ((distinct,),) = site.sql("select count(distinct payload->>'n') from messages")
    assert distinct == COUNT
    assert consumer.stop() == 0
    assert site.sql("select count(*) from dead_letters") == [(0,)]
