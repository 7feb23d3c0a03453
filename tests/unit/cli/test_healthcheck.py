"""`forebay healthcheck`: what a supervisor is told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import forebay


class _Process(http.server.BaseHTTPRequestHandler):
    """Alive, and not ready."""

    def do_GET(self) -> None:
        alive = self.path == "/livez"
        self.send_response(200 if alive else 503)
        self.end_headers()
        self.wfile.write(b"ok\n" if alive else b"the broker is away\n")

    def log_message(self, *_: object) -> None:
        """Nothing: the test looks at the answers."""


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Process)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_it_exits_with_0_when_the_answer_is_200(tmp_path: Path, address: str) -> None:
    done = forebay("healthcheck", f"{address}/livez", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "ok\n")


def test_it_exits_with_1_and_says_what_the_process_says(tmp_path: Path, address: str) -> None:
    done = forebay("healthcheck", f"{address}/readyz", cwd=tmp_path)
    assert done.returncode == 1
    assert "answered 503: the broker is away" in done.stderr


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [("http://127.0.0.1:9/readyz", 1, "does not answer"), ("localhost:8080", 2, "write it like")],
)
def test_without_an_answer_it_says_why(tmp_path: Path, url: str, code: int, said: str) -> None:
    done = forebay("healthcheck", url, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
