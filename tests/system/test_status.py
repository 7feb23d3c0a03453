"""`forebay status` while the parts of a real installation are killed, one by one and all together."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

from tests.servers.postgres import Postgres, free_port
from tests.system.harness import Process, Site, http, until


def ask(site: Site, **env: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `forebay status --json`."""
    done = site.run("status", "--json", "--interval", "300ms", env=env)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def pausing(asked: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any]] | None:
    """What was asked, once the consumer has found out that the database is away."""
    return asked if "next try" in asked[1]["sentence"] else None


def consumer_of(site: Site, port: int) -> Process:
    consumer = site.start("consume", "--port", str(port), log="consume")

    def ready() -> bool:
        try:
            return http("GET", f"http://127.0.0.1:{port}/readyz").status == 200
        except OSError:
            return False

    consumer.until(ready, what="the consumer's /readyz")
    return consumer


def test_it_tells_what_is_so_whatever_is_killed(tmp_path: Path) -> None:
    port = free_port()
    # A server of its own: this one is killed.
    with Postgres() as postgres:
        site = Site(tmp_path, postgres.create_database(), queues="orders")
        site.settings = {
            "STATUS__GATEWAYS": site.url,
            "STATUS__CONSUMERS": f"http://127.0.0.1:{port}",
            "GATEWAY__JOURNAL": str(tmp_path / "journal"),
        }
        try:
            site.migrate()
            gateway, consumer = site.gateway(), consumer_of(site, port)
            assert site.post("orders", b"1").status == 202
            consumer.until(lambda: site.stored() == 1, what="a row")

            code, told = ask(site)
            assert (code, told["ok"]) == (0, True), told
            assert told["sentence"].startswith("All fine: nothing is behind; 0/s in, "), told
            assert [told[who][0]["ready"] for who in ("gateways", "consumers")] == [True, True]

            postgres.stop("immediate")
            for n in range(3):
                assert site.post("orders", b"%d" % n).status == 202
            seen = until(lambda: pausing(ask(site)), within=60.0, what="the consumer's pause in status")
            assert seen is not None
            code, told = seen
            sentence = (
                r"orders paused: PostgreSQL unreachable since \d\d:\d\d;"
                r" 3 waiting, none lost; next try in .+\."
            )
            assert code == 7
            assert re.fullmatch(sentence, told["sentence"]), told["sentence"]

            gateway.kill()
            consumer.kill()
            code, told = ask(site)
            assert code == 7
            assert told["sentence"] == (
                "no gateway answers; orders paused: PostgreSQL unreachable;"
                f" the consumer http://127.0.0.1:{port} does not answer; 3 waiting, none lost."
            )

            # The broker, too: nothing listens there. What the journal holds is known all the same.
            away = f"kafka://127.0.0.1:{free_port()}"
            gateway = site.gateway(FOREBAY_BROKER__URL=away)
            for n in range(5):
                assert site.post("orders", b"%d" % n).json["durability"] == "journaled"
            code, told = ask(site, FOREBAY_BROKER__URL=away)
            assert code == 6
            assert told["sentence"].startswith(
                "Kafka unreachable, new messages are accepted all the same; "
            ), told["sentence"]
            assert (told["journaled"], told["queues"][0]["journaled"]) == (5, 5)

            gateway.kill()
            code, told = ask(site, FOREBAY_BROKER__URL=away)
            assert code == 6
            assert told["sentence"].startswith("Kafka unreachable, and no gateway answers; ")
            assert "at least 5 waiting (5 in journals), none lost." in told["sentence"]
        finally:
            site.close()


def test_watching_ends_with_ctrl_c_and_zero(site: Site) -> None:
    site.start("gateway", "--port", str(site.port), log="gateway").until(
        site.queue_file.exists, what="a queue"
    )
    watching = site.start("status", "--watch", "--interval", "100ms", log="status")
    watching.until(lambda: watching.output.count("All fine") > 1, within=60.0, what="a second look")

    watching.signal(signal.SIGINT)

    assert watching.wait() == 0
