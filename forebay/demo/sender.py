"""
A load in a process of its own, so that nothing else in the demo can delay it.

    python -m forebay.demo.sender '{"url": …, "rate": …, "seconds": …, "outcomes": F, "record": [QUEUE, F]}'

Prints "ready", is told by a line when to begin (a moment of the monotonic clock), and then prints a line of
JSON, a `Tick`, four times a second. SIGTERM ends the sending; what is open keeps its time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from forebay.demo.load import TIMEOUT, Load, Tick
from forebay.ledger import Recorder


async def _main(plan: dict[str, Any]) -> None:
    record = None
    if plan.get("record"):
        queue, file = plan["record"]
        record = (queue, Recorder(Path(file)))
    load = Load(
        plan["url"],
        rate=plan["rate"],
        seconds=plan["seconds"],
        timeout=plan.get("timeout", TIMEOUT),
        record=record,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)

    def tell(tick: Tick) -> None:
        print(json.dumps(asdict(tick)), flush=True)

    print("ready", flush=True)
    outcomes = await load.run(tell, at=float(sys.stdin.readline()))
    outcomes.write(Path(plan["outcomes"]))


if __name__ == "__main__":
    uvloop.run(_main(json.loads(sys.argv[1])))
