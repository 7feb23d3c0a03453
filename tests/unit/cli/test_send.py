"""`forebay send`, run as a real process against a gateway that misbehaves."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from forebay.ledger import Sent, read_record
from tests.unit.cli.gateways import ScriptedGateway
from tests.unit.cli.processes import environment


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "forebay.cli.main", "send", *args]


def send(
    *args: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*args), input=stdin, capture_output=True, timeout=60, env=environment(env), check=False
    )


def ndjson(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def recorded(path: Path) -> list[Sent]:
    with path.open("rb") as lines:
        return read_record(lines).sent


LINES = [b'{"n": %d}' % n for n in range(1, 101)]


def test_one_message_is_an_argument_and_its_id_is_printed() -> None:
    with ScriptedGateway().running() as gateway:
        done = send("orders", '{"id": 1}', "--url", gateway.url)

    assert done.returncode == 0
    assert done.stdout.decode().split() == list(gateway.ids())
    assert gateway.requests[0][1] == b'{"id": 1}'
    assert gateway.headers[0]["Content-Type"] == "application/json"


def test_a_file_is_one_message_with_exactly_its_bytes(tmp_path: Path) -> None:
    body = bytes(range(256)) + b"\r\n\n"
    (tmp_path / "scan.pdf").write_bytes(body)
    with ScriptedGateway().running() as gateway:
        done = send("scans", "--file", str(tmp_path / "scan.pdf"), "--url", gateway.url)

    assert done.returncode == 0
    assert gateway.requests[0][1] == body
    assert gateway.headers[0]["Content-Type"] == "application/pdf"


def test_stdin_is_one_message_too() -> None:
    with ScriptedGateway().running() as gateway:
        done = send("orders", "--url", gateway.url, "--json", stdin=b"two\nlines\n")

    assert gateway.requests[0][1] == b"two\nlines\n"
    assert json.loads(done.stdout)["durability"] == "synced"


def test_every_line_is_one_message_with_its_exact_bytes(tmp_path: Path) -> None:
    """Not parsed and not normalised: spaces, key order, broken JSON and foreign encodings pass."""
    lines = [b'{"b": 1,  "a":2 }', b"not json", b"\xff\xfe\x00", "ü".encode(), b" x "]
    with ScriptedGateway().running() as gateway:
        done = send("q", "--ndjson", str(ndjson(tmp_path / "x", lines)), "--url", gateway.url)

    assert done.returncode == 0, done.stderr
    assert sorted(body for _, body in gateway.requests) == sorted(lines)


def test_lines_come_from_stdin_and_the_last_one_needs_no_end() -> None:
    with ScriptedGateway().running() as gateway:
        send("q", "--ndjson", "--url", gateway.url, "--key-prefix", "p", stdin=b"a\r\n\n\nb")

    assert gateway.messages == {"p/1": b"a", "p/4": b"b"}


@pytest.mark.parametrize("through", ["file", "stdin"])
def test_lines_of_every_length_arrive_whole(tmp_path: Path, through: str) -> None:
    """Shorter and longer than what is read at once."""
    lines = [
        b"%d " % n + b"x" * size for n, size in enumerate([1, 700_000, 3, 262_140, 262_144, 5, 0, 300_000])
    ]
    path = ndjson(tmp_path / "x", lines)
    with ScriptedGateway().running() as gateway:
        if through == "file":
            send("q", "--ndjson", str(path), "--url", gateway.url)
        else:
            send("q", "--ndjson", "--url", gateway.url, stdin=path.read_bytes())

    assert sorted(body for _, body in gateway.requests) == sorted(lines)


def test_the_same_file_with_the_same_prefix_has_the_same_effect(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway().running() as gateway:
        for _ in range(2):
            done = send("q", "--ndjson", path, "--url", gateway.url, "--key-prefix", "p", "--json")

    assert len(gateway.messages) == 100
    summary = json.loads(done.stdout)
    assert (summary["accepted"], summary["duplicates"]) == (100, 100)


def test_two_runs_without_a_prefix_are_different_messages(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES[:3]))
    with ScriptedGateway().running() as gateway:
        for _ in range(2):
            send("q", "--ndjson", path, "--url", gateway.url)

    assert len(gateway.messages) == 6


def test_busy_answers_and_lost_answers_are_tried_again_until_each_message_is_there_once(
    tmp_path: Path,
) -> None:
    def moody(gateway: ScriptedGateway, key: str, _: bytes) -> int:
        tries = sum(seen == key for seen, _ in gateway.requests)
        return [503, 0, 202][min(tries, 3) - 1] if int(key.split("/")[1]) % 5 == 0 else 202

    record = tmp_path / "sent.txt"
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway(moody).running() as gateway:
        done = send("q", "--ndjson", path, "--url", gateway.url, "--record", str(record))

    assert done.returncode == 0, done.stderr
    assert sorted(gateway.messages.values()) == sorted(LINES)
    assert len(gateway.requests) == 100 + 2 * 20
    assert {s.id: s.digest for s in recorded(record)} == gateway.ids()


def test_a_refused_line_fails_alone_and_the_way_to_go_on_is_said(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway(lambda _g, _k, body: 413 if body == LINES[41] else 202).running() as gateway:
        done = send("q", "--ndjson", path, "--url", gateway.url, "--key-prefix", "p")

    assert done.returncode == 8
    assert len(gateway.messages) == 99
    assert b"line 42: 413: said 413" in done.stderr
    assert b"--key-prefix p --from-line 42" in done.stderr


def test_going_on_at_a_line_keeps_the_numbers_of_the_lines(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway().running() as gateway:
        send("q", "--ndjson", path, "--url", gateway.url, "--key-prefix", "p", "--from-line", "99")

    assert gateway.messages == {"p/99": LINES[98], "p/100": LINES[99]}


def test_what_no_message_of_the_queue_survives_stops_the_run_at_once(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway(lambda *_: 404).running() as gateway:
        done = send("q", "--ndjson", path, "--url", gateway.url, "--concurrency", "4")

    assert done.returncode == 4
    assert len(gateway.requests) <= 8


def test_a_gateway_that_is_not_there_is_exit_code_6(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        one = send("q", "x", "--url", url, "--retry-for", "0.2s")
        many = send("q", "--ndjson", "--url", url, "--retry-for", "0.2s", stdin=b"a\nb\n")

    assert (one.returncode, many.returncode) == (6, 6)
    assert b"Is the gateway running there?" in one.stderr


def test_why_it_takes_longer_is_said_once(tmp_path: Path) -> None:
    def busy_at_first(gateway: ScriptedGateway, _key: str, _body: bytes) -> int:
        return 503 if len(gateway.requests) < 4 else 202

    with ScriptedGateway(busy_at_first).running() as gateway:
        done = send("orders", "x", "--url", gateway.url)

    assert done.returncode == 0
    assert done.stderr.count(b"said 503; trying again") == 1


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_an_empty_stdin_is_no_message(dash: tuple[str, ...]) -> None:
    with ScriptedGateway().running() as gateway:
        refused = send("orders", *dash, "--url", gateway.url)
        meant = send("orders", "--body", "", "--url", gateway.url)

    assert (refused.returncode, meant.returncode) == (2, 0)
    assert [body for _, body in gateway.requests] == [b""]


def test_no_lines_are_no_messages() -> None:
    with ScriptedGateway().running() as gateway:
        done = send("orders", "--ndjson", "--url", gateway.url)

    assert (done.returncode, done.stdout) == (0, b"0 accepted\n")


@pytest.mark.parametrize(("status", "code"), [(404, 4), (422, 5), (413, 1), (401, 1)])
def test_the_exit_code_tells_why_one_message_was_refused(status: int, code: int) -> None:
    with ScriptedGateway(lambda *_: status).running() as gateway:
        done = send("q", "x", "--url", gateway.url)

    assert done.returncode == code
    assert b"said %d" % status in done.stderr


def test_who_sends_no_api_key_is_told_where_it_is_read_from() -> None:
    with ScriptedGateway(lambda *_: 401).running() as gateway:
        without = send("q", "x", "--url", gateway.url)
        wrong = send("q", "x", "--url", gateway.url, env={"FOREBAY_API_KEY": "s3cret"})

    assert b"FOREBAY_API_KEY" in without.stderr
    assert b"FOREBAY_API_KEY" not in wrong.stderr


def test_no_more_than_the_given_number_are_in_flight(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway().running() as gateway:
        send("q", "--ndjson", path, "--url", gateway.url, "--concurrency", "3")

    assert 1 <= gateway.most_at_once <= 3


def test_the_rate_is_a_ceiling(tmp_path: Path) -> None:
    path = str(ndjson(tmp_path / "x", LINES))
    with ScriptedGateway().running() as gateway:
        done = send("q", "--ndjson", path, "--url", gateway.url, "--rate", "100", "--json")

    # 100 messages at 100 per second; 50 ms may be caught up.
    assert json.loads(done.stdout)["seconds"] >= 0.94


def test_the_api_key_comes_from_the_environment_and_is_never_printed(tmp_path: Path) -> None:
    with ScriptedGateway().running() as gateway:
        done = send("q", "x", env={"FOREBAY_API_KEY": "s3cret", "FOREBAY_URL": gateway.url})

    assert gateway.headers[0]["Authorization"] == "Bearer s3cret"
    assert b"s3cret" not in done.stdout + done.stderr


def test_an_interrupt_finishes_what_is_in_flight_and_says_where_to_go_on(tmp_path: Path) -> None:
    with ScriptedGateway().running() as gateway:
        child = subprocess.Popen(
            command("q", "--ndjson", "--url", gateway.url, "--key-prefix", "p"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdin is not None
        child.stdin.write(b"a\nb\nc\n")
        child.stdin.flush()
        wait_for(lambda: len(gateway.messages) == 3)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)

    assert child.returncode == 130
    assert out.startswith(b"3 accepted")
    assert b"--from-line 4" in err


def test_the_record_of_a_killed_sender_has_every_message_but_those_in_flight(tmp_path: Path) -> None:
    record = tmp_path / "sent.txt"
    with ScriptedGateway(lambda _g, _k, body: -1 if body == b"stuck" else 202).running() as gateway:
        child = subprocess.Popen(
            command("q", "--ndjson", "--url", gateway.url, "--record", str(record)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdin is not None
        child.stdin.write(b"".join(line + b"\n" for line in LINES) + b"stuck\n")
        child.stdin.flush()
        wait_for(lambda: len(gateway.requests) == 101)
        # The last answer is on its way: a moment later its line is written.
        wait_for(lambda: len(record.read_bytes().splitlines()) == 100)
        child.kill()
        child.communicate(timeout=20)

    assert {s.digest for s in recorded(record)} == {hashlib.sha256(line).hexdigest() for line in LINES}


def test_a_record_is_appended_to(tmp_path: Path) -> None:
    record = tmp_path / "sent.txt"
    with ScriptedGateway().running() as gateway:
        for body in ("a", "b"):
            send("q", body, "--url", gateway.url, "--record", str(record))

    assert {s.id: s.digest for s in recorded(record)} == gateway.ids()


@pytest.mark.parametrize("args", [("x",), ("--ndjson", "lines")])
def test_a_record_on_a_full_disk_is_said_in_one_line(tmp_path: Path, args: tuple[str, ...]) -> None:
    """Nothing is sent on without a record once one was asked for."""
    path = ndjson(tmp_path / "lines", LINES)
    args = tuple(str(path) if arg == "lines" else arg for arg in args)
    with ScriptedGateway().running() as gateway:
        done = send("q", *args, "--url", gateway.url, "--record", "/dev/full", "--concurrency", "2")

    assert done.returncode == 1
    assert b"/dev/full: the record cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(gateway.messages) <= 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("Orders", "x"), b"queue name 'Orders' is not allowed"),
        (("q", "x", "--body", "y"), b"give one body"),
        (("q", "x", "--url", "localhost:8080"), b"http://host:port"),
        (("q", "x", "--rate", "5"), b"for --ndjson"),
        (("q", "--ndjson", "--idempotency-key", "k"), b"--key-prefix"),
        (("q", "x", "--retry-for", "soon"), b"is not a duration"),
        (("q", "x", "--header", "oops"), b"NAME=VALUE"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(args: tuple[str, ...], said: bytes) -> None:
    done = send(*args)

    assert done.returncode == 2
    assert said in done.stderr.replace(b"\n", b" ")


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
