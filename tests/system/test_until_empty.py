"""`forebay consume --until-empty`, for schedulers: it ends when all is done, its exit code says how."""

from __future__ import annotations

import signal

from tests.servers.postgres import free_port
from tests.system.harness import Site

MESSAGES = 300

HANDLER = """
import os

from forebay import Reject
from sqlalchemy import text

failed = set()


def handle(message, db):
    if b'"poison"' in message.body:
        raise Reject("poison")
    if b'"hiccup"' in message.body and message.id not in failed:
        failed.add(message.id)
        raise RuntimeError("not at the first try")
    db.execute(text("insert into effects (id) values (:id)"), {"id": message.id})
"""


def send(site: Site, *bodies: bytes, queue: str) -> None:
    done = site.run("send", queue, "--ndjson", "-", "--url", site.url, stdin=b"\n".join(bodies) + b"\n")
    assert done.returncode == 0, done.stderr


def with_handler(site: Site) -> None:
    (site.folder / "shop.py").write_text(HANDLER)
    site.settings[f"QUEUES__{site.queues}__HANDLER"] = "shop:handle"
    site.sql("create table effects (id varchar(36) primary key)")


def test_two_side_by_side_empty_the_queue_and_both_end(site: Site, broker: str) -> None:
    """On every broker; what comes back from a first failure within seconds is waited for."""
    with_handler(site)
    gateway = site.gateway()
    send(site, *[b'{"n": %d}' % n for n in range(MESSAGES)], *[b'{"n": "hiccup"}'] * 3, queue=site.queues)
    gateway.stop()

    runs = [site.start("consume", "--until-empty", "--timeout", "60", log=f"run-{n}") for n in range(2)]
    codes = [run.wait(within=70) for run in runs]

    assert codes == [0, 0], [run.tail() for run in runs]
    assert site.sql("select count(*) from effects") == [(MESSAGES + 3,)]


def test_the_exit_code_tells_what_went_wrong(site: Site) -> None:
    gateway = site.gateway()
    assert site.run("consume", "--until-empty").returncode == 0

    with_handler(site)
    send(site, b'{"n": 1}', b'{"n": "poison"}', queue=site.queues)
    partly = site.run("consume", "--until-empty")
    assert partly.returncode == 8
    assert "1 stored in this run, but 1 became dead letters" in partly.stderr

    # Not yet due, and so nothing for this run.
    site.post(site.queues, b'{"n": 2}', Forebay_Delay="1h")
    assert site.run("consume", "--until-empty").returncode == 0

    nowhere = f"127.0.0.1:{free_port()}"
    away = site.run(
        "consume", "--until-empty", "--timeout", "1",
        env={"FOREBAY_DATABASE__URL": f"postgresql://forebay@{nowhere}/forebay"},
    )  # fmt: skip
    assert away.returncode == 7
    no_broker = site.run(
        "consume", "--until-empty", "--timeout", "1",
        env={"FOREBAY_BROKER__URL": f"amqp://{nowhere}"},
    )  # fmt: skip
    assert no_broker.returncode == 6

    stopped = site.start("consume", "--until-empty", log="stopped")
    stopped.until(lambda: "consuming" in stopped.output)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 130
    gateway.stop()
