"""
A service to which orders are delivered, for the profile `demo`: slow, as services are, and easy to break.

    docker compose --env-file deploy/demo.env stop downstream       gone: connections are refused
    docker compose --env-file deploy/demo.env pause downstream      there, and silent
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS = float(os.environ.get("SECONDS_PER_DELIVERY", "0.02"))


class Downstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        time.sleep(SECONDS)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: who delivers logs what goes wrong."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Downstream).serve_forever()
