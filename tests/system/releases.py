"""
Versions of Forebay in a folder, as a host has them: `ROOT/VERSION/bin/forebay`, each in a venv of its own.

What Forebay needs is taken from the environment that runs the tests; the code is each version's own.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("forebay", "gateway", "consumers")

_BROKEN = """#!/bin/sh
# {what}
case "$1" in
{verb}) {body} ;;
*) exec {good} "$@" ;;
esac
"""

_ANSWERS_500 = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(500)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

# `gateway --host 127.0.0.1 --port PORT`: the port is the fifth argument.
_STAND_IN = """
import http.server, json, signal, sys

if sys.argv[1] == "migrate":
    sys.exit(0)
if sys.argv[1] == "journal":
    open("asked", "a").write("x")
    print(open("journal.json").read())
    sys.exit(0)

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b"ready")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(202, json.dumps({"id": "1", "queue": "forebay-canary", "durability": "synced"}).encode())

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

BROKEN = {
    "fails-at-start": "exit 3",
    "hangs-at-start": "exec sleep 600",
    "answers-500": 'exec {python} {folder}/answers_500.py "$5"',
    "exits-after-2s": '{good} "$@" & sleep 2; kill -9 $!; exit 1',
}
"""Ways in which one command of a version is broken, and what it does; the others are good."""


class Releases:
    """The versions that a test made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.command = f"{root}/{{version}}/bin/forebay"

    def add(self, version: str, source: Path = CHECKOUT) -> None:
        """A version with the code of a checkout."""
        folder = self.root / version
        for package in PACKAGES:
            shutil.copytree(source / package, folder / "src" / package)  # and what is compiled of it
        self._launcher(folder)

    def add_commit(self, version: str, commit: str) -> bool:
        """The code of a commit; False if this checkout does not have it."""
        packed = subprocess.run(
            ["git", "archive", commit, *PACKAGES], cwd=CHECKOUT, capture_output=True, check=False
        )
        if packed.returncode != 0:
            return False
        folder = self.root / version
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder / "src", filter="data")
        self._launcher(folder)
        return True

    def add_previous(self, version: str) -> str:
        """The commit before this one, or where there is no history this code again; says which."""
        if self.add_commit(version, "HEAD~1"):
            return "the commit before"
        self.add(version)
        return "the same code again: this checkout has no history"

    def add_stand_in(self, version: str) -> None:
        """No Forebay at all, for tests of the deployer: ready at once, takes canaries, ends at SIGTERM."""
        script = self.root / version / "bin" / "forebay"
        script.parent.mkdir(parents=True)
        script.write_text(f"#!{sys.executable} -ES\n{_STAND_IN}")
        script.chmod(0o755)

    def add_broken(self, how: str, good: str, *, verb: str = "gateway") -> None:
        """A version named after how this command of it is broken."""
        folder = self.root / how
        (folder / "bin").mkdir(parents=True)
        (folder / "answers_500.py").write_text(_ANSWERS_500)
        program = self.command.format(version=good)
        body = BROKEN[how].format(python=sys.executable, folder=folder, good=program)
        script = folder / "bin" / "forebay"
        script.write_text(_BROKEN.format(what=how, verb=verb, body=body, good=program))
        script.chmod(0o755)

    def _launcher(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # Not as a folder for sites: ours has a link to the checkout, which then is not followed.
        (site / "version.pth").write_text(f"{folder}/src\n{sysconfig.get_path('purelib')}\n")
        script = folder / "bin" / "forebay"
        script.write_text(
            f"#!{folder}/bin/python\n"
            "from forebay.cli.main import main\n\nif __name__ == '__main__':\n    main()\n"
        )
        script.chmod(0o755)
