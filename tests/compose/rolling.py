"""
deploy/rolling on a compose stack: to another version and back, and a version that does not start.

Alone, on a stack of its own: python -m tests.compose.rolling
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.compose.stack import ROOT, Stack
from tests.compose.trouble import under_load
from tests.system.rolling_run import ROLL

IMAGE = "forebay:compose-test-{version}"
_BROKEN = """
FROM forebay:local
ENTRYPOINT ["sh", "-c", "[ $1 = gateway ] && exit 1; exec forebay $@", "--"]
"""


def rolled(stack: Stack, folder: Path) -> dict[str, Any]:
    """Under a load of clients that send each request once."""
    images()
    config = folder / "rolling.toml"
    config.write_text(
        f'kind = "compose"\ndirectory = "{folder}/rolling"\n'
        "[checks]\nsettle = 2\nstart_timeout = 180\n"
        'canary_key_file = "/run/forebay/api-key"\n'
        f'[compose]\nproject = "{ROOT}"\ncommand = {json.dumps(stack.command)}\nimage = "{IMAGE}"\n'
    )

    def roll(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROLL), "--config", str(config), *words]
        done = subprocess.run(
            command, env=stack.env, capture_output=True, text=True, timeout=1_800, check=False
        )
        print(done.stderr, file=sys.stderr)
        return done

    def trouble(flows: Callable[[float], None]) -> dict[str, Any]:
        codes = []
        for words in (["to", "1"], ["to", "2"], ["rollback"], ["to", "broken"], ["smoke"]):
            codes.append(roll(*words).returncode)
            flows(2)
        return {
            "exit_codes": codes,
            "least_in_rotation": min(rotations(folder / "rolling/roll.log")),
            "images": sorted({str(c["Image"]) for c in stack.containers("gateway", "consumer")}),
            "running": len(stack.containers("gateway", "consumer")),
        }

    return under_load(stack, folder / "rolled.txt", trouble)


def images() -> None:
    """Versions 1 and 2 are the image of this checkout; `broken` is one whose gateway ends at once."""
    for version in ("1", "2"):
        name = IMAGE.format(version=version)
        subprocess.run(["docker", "tag", "forebay:local", name], check=True)
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", IMAGE.format(version="broken"), "-"],
        input=_BROKEN.encode(), check=True, capture_output=True,
    )  # fmt: skip


def rotations(log: Path) -> list[int]:
    return [
        int(line.partition("in rotation: ")[2].split()[0])
        for line in log.read_text().splitlines()
        if "in rotation: " in line
    ]


def main() -> None:
    stack = Stack("rabbitmq")
    stack.remove()
    with tempfile.TemporaryDirectory(prefix="forebay-compose-") as folder:
        Path(folder).chmod(0o755)
        try:
            stack.up()
            print(json.dumps(rolled(stack, Path(folder))))
        finally:
            stack.remove()


if __name__ == "__main__":
    main()
