"""
Flame graphs of the two hot paths, in bench/profiles: accepting messages, and draining them.

    python -m bench.profile [accept-embedded | accept-rabbitmq | accept-kafka | drain-embedded] ...

py-spy looks at the process a hundred times a second while it is busy: a `forebay gateway` under wrk
with 64 connections, a `forebay consume` that empties an embedded queue into PostgreSQL.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.ingest import Server, warm_up
from bench.load import broker_settings, fill
from forebay.brokers.factory import open_broker
from tests.servers.kafka import Kafka
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site

PROFILES = Path(__file__).parent / "profiles"
SECONDS = 8
RATE = 100
MESSAGES = 200_000


def recording(pid: int, name: str) -> subprocess.Popen[bytes]:
    PROFILES.mkdir(exist_ok=True)
    spy = str(Path(sys.executable).with_name("py-spy"))
    return subprocess.Popen(
        [
            spy, "record", "--pid", f"{pid}", "--duration", f"{SECONDS}", "--rate", f"{RATE}",
            "--format", "flamegraph", "--output", str(PROFILES / f"{name}.svg"), "--function",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def finish(spy: subprocess.Popen[bytes], name: str, what: str) -> None:
    """Wait for it; what it measured stands above the graph, instead of py-spy's command line."""
    spy.wait()
    file = PROFILES / f"{name}.svg"
    file.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\1{what}", file.read_text()))


def accept(stack: ExitStack, folder: Path, name: str, url: str) -> None:
    site = Site(folder, database_url="sqlite:///unused.db", queues="bench")
    stack.callback(site.close)
    server = Server(name, site.gateway(FOREBAY_BROKER__URL=url), f"{site.url}/v1/queues/bench/messages")
    warm_up([server])
    spy = recording(server.process.pid, name)
    server.load(keyed=False, seconds=SECONDS + 1, measured=False)
    finish(spy, name, f"forebay gateway, {name}: 64 connections, one message per POST")


def accept_embedded(stack: ExitStack, folder: Path) -> None:
    accept(stack, folder, "accept-embedded", f"sqlite:///{folder / 'queue.db'}")


def accept_rabbitmq(stack: ExitStack, folder: Path) -> None:
    accept(stack, folder, "accept-rabbitmq", stack.enter_context(RabbitMQ()).url)


def accept_kafka(stack: ExitStack, folder: Path) -> None:
    accept(stack, folder, "accept-kafka", stack.enter_context(Kafka()).url)


async def _prepare(queue_file: Path) -> None:
    async with open_broker(broker_settings(queue_file)) as broker:
        await broker.declare("bench")
        await fill(broker, "bench", MESSAGES)


def drain_embedded(stack: ExitStack, folder: Path) -> None:
    postgres = stack.enter_context(Postgres())
    site = Site(folder, postgres.create_database(), queues="bench")
    stack.callback(site.close)
    site.settings["BROKER__URL"] = f"sqlite:///{folder / 'queue.db'}"
    site.migrate()
    asyncio.run(_prepare(folder / "queue.db"))
    consumer = site.consumer("bench")
    consumer.until(lambda: site.stored() > 0, within=60, what="the first rows")
    spy = recording(consumer.pid, "drain-embedded")
    finish(spy, "drain-embedded", "forebay consume: an embedded queue into PostgreSQL")


HOT_PATHS: dict[str, Callable[[ExitStack, Path], None]] = {
    "accept-embedded": accept_embedded,
    "accept-rabbitmq": accept_rabbitmq,
    "accept-kafka": accept_kafka,
    "drain-embedded": drain_embedded,
}


def main(names: list[str]) -> int:
    if unknown := set(names) - HOT_PATHS.keys():
        print(f"no {', '.join(sorted(unknown))}; there are: {', '.join(HOT_PATHS)}", file=sys.stderr)
        return 2
    for name in names or HOT_PATHS:
        with ExitStack() as stack:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forebay-profile-", ignore_cleanup_errors=True)
            )
            HOT_PATHS[name](stack, Path(folder))
        print(PROFILES / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
