"""The curl commands of docs/http-api.md are answered 202, in the order in which they stand there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.system.harness import Site
from tests.system.test_readme import commands

DOC = Path(__file__).parents[2] / "docs" / "http-api.md"


def test_the_commands_of_the_page_work(bare_site: Site) -> None:
    bare_site.queues = "orders"
    bare_site.gateway()
    found = [c for c in commands(DOC.read_text()) if "curl" in c]
    assert len(found) >= 9
    for command in found:
        command = command.replace("127.0.0.1:8080", f"127.0.0.1:{bare_site.port}")
        done = subprocess.run(
            ["bash", "-ec", command], capture_output=True, text=True, timeout=30, cwd=bare_site.folder
        )
        assert "202 Accepted" in done.stdout, f"$ {command}\n{done.stdout}{done.stderr}"
