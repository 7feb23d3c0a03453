"""
What API key, quota and idempotency add to the CPU of a one-message POST, against a bare no-op.

Four gateways on embedded queues of their own run the whole time and are loaded in turns: without
anything, with a key that has no limits, with a key that has a rate and a number of bytes per
second, and with the same and idempotency keys. Each has its own queue: one that three of them
filled would cost more for being larger. Beside them runs the bare ASGI application that stores
nothing. wrk makes each request anew in all of them: a slower generator means smaller groups,
and more CPU for each message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.ingest import CONNECTIONS, ROUNDS, SECONDS, Server, uvicorn, warm_up
from bench.report import Target, interleave, ratio, record, versions
from tests.system.harness import Site

MOST = 1.2
"""With API key, quota and idempotency, in multiples of the bare no-op's request."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
        sites: list[Site] = []

        def gateway(name: str, **env: str) -> Server:
            place = Path(folder, name.replace(" ", "-"))
            place.mkdir()
            site = Site(place, database_url="sqlite:///unused.db", queues="bench")
            sites.append(site)
            return Server(name, site.gateway(**env), f"{site.url}/v1/queues/bench/messages")

        file = Path(folder, "keys.json")
        free = _key(file, "free")
        # More than any machine sends: what is measured is the counting, not the refusing.
        limited = _key(file, "limited", "--rate", "1000000", "--bytes-per-second", "1GiB")
        try:
            keys = {"FOREBAY_GATEWAY__KEYS_FILE": str(file)}
            variants = {
                "open": (gateway("open"), "", False),
                "key": (gateway("key", **keys), free, False),
                "key and quota": (gateway("quota", **keys), limited, False),
                "key, quota and idempotency": (gateway("idempotency", **keys), limited, True),
            }
            noop = uvicorn("bare ASGI no-op", "bench.baseline:bare", sites[0])
            variants[noop.name] = (noop, "", False)
            shown = {name: Server(name, s.process, s.url) for name, (s, _, _) in variants.items()}

            def load(name: str, *, seconds: int = SECONDS, measured: bool = True) -> None:
                _, key, keyed = variants[name]
                os.environ |= {"API_KEY": key, "MADE": "1"}
                shown[name].load(keyed=keyed, seconds=seconds, measured=measured)

            for name in variants:
                load(name, seconds=2, measured=False)
            os.environ["API_KEY"] = ""
            warm_up([shown["open"], shown[noop.name]])
            interleave(ROUNDS, *(lambda name=name: load(name) for name in variants))
        finally:
            for site in sites:
                site.close()

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} -d{SECONDS}s, 500-byte JSON, {ROUNDS} interleaved rounds",
    }
    cost = {name: shown[name].cpu[keyed] for name, (_, _, keyed) in variants.items()}
    for name, (_, _, keyed) in variants.items():
        figures[name] = {
            "cpu_us_per_message": round(cost[name].median, 2),
            "spread": cost[name].spread,
            "per_second": round(shown[name].rate[keyed].median),
        }
    with_all = cost["key, quota and idempotency"]
    figures["with key, quota and idempotency / without"] = round(ratio(with_all, cost["open"]), 3)
    against = ratio(with_all, cost["bare ASGI no-op"])
    targets = [Target("key, quota and idempotency: CPU / bare ASGI no-op", against, MOST, True)]
    return record("keys", figures, targets, versions("uvicorn", "uvloop", "httptools", "apsw"))


def _key(file: Path, name: str, *limits: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "forebay.cli.main", "api-keys", "create", name, "--file", str(file), *limits],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
