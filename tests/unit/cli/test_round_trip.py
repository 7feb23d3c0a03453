"""`forebay send` through `forebay dev` and back by `forebay verify`, as a user does it on the first day."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.servers.postgres import free_port
from tests.unit.cli.processes import DEADLINE, Running, forebay

COUNT = 3_000


@pytest.mark.system
def test_a_gateway_killed_while_it_is_sent_to_loses_doubles_and_alters_nothing(tmp_path: Path) -> None:
    """The sender keeps each message and its key through the restart; the record has what was answered 202."""
    lines = tmp_path / "flights.ndjson"
    lines.write_text("".join(json.dumps({"flight": n, "origin": "EWR"}) + "\n" for n in range(COUNT)))
    record = tmp_path / "sent.txt"
    port = str(free_port())
    to = f"http://127.0.0.1:{port}"
    send = ("send", "flights", "--ndjson", str(lines), "--url", to, "--record", str(record), "--json")

    with Running("dev", "--port", port, cwd=tmp_path) as first:
        first.url()
        with Running(*send, cwd=tmp_path) as sender:
            until_lines(record, COUNT // 4)
            first.end(signal.SIGKILL)
            assert sender.process.poll() is None, "the sender was done before the gateway died"
            with Running("dev", "--port", port, cwd=tmp_path) as second:
                summary = json.loads(sender.until(r"^\{.*\}$")[0])
                assert sender.process.wait(DEADLINE) == 0
                checked = forebay("verify", str(record), "--wait", "15s", "--json", cwd=tmp_path)
                assert second.end(signal.SIGTERM) == 0

    assert (summary["accepted"], summary["failed"]) == (COUNT, 0)
    assert checked.returncode == 0, checked.stderr
    figures = json.loads(checked.stdout)
    assert (figures["recorded"], figures["stored"]) == (COUNT, COUNT)
    assert (figures["lost"], figures["duplicated"], figures["altered"], figures["dead"]) == (0, 0, 0, 0)
    assert figures["max_attempts"] == 1


def until_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
