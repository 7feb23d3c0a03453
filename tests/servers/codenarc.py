"""CodeNarc, the linter for Groovy, and Groovy itself: from npm-groovy-lint, fetched once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.servers.kafka import find_java

PACKAGE = "npm-groovy-lint"
VERSION = "18.0.0"


class CodeNarcNotInstalled(Exception):
    """No npm to fetch it with."""


def find_jars() -> Path:
    """The folder with the jars; fetched when it is not there, by one process at a time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay"
    jars = cache / f"{PACKAGE}-{VERSION}"
    if jars.exists():
        return jars
    if shutil.which("npm") is None:
        raise CodeNarcNotInstalled("no npm to fetch CodeNarc with; on Debian: apt-get install npm")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "codenarc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars.exists():
            return jars
        folder = Path(tempfile.mkdtemp(prefix="codenarc-fetch-", dir=cache))
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"],
                cwd=folder, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode != 0:
                raise CodeNarcNotInstalled(f"npm could not fetch {PACKAGE} {VERSION}: {done.stderr[-500:]}")
            subprocess.run(["tar", "xzf", done.stdout.strip()], cwd=folder, check=True)
            # A folder is complete when it has its name.
            (folder / "package" / "lib" / "java").rename(jars)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return jars


def groovy(script: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Groovy script that may use CodeNarc."""
    jars = find_jars()
    # Without what CodeNarc logs with: it would log to stdout.
    path = [str(p) for p in sorted(jars.rglob("*.jar")) if "logback" not in p.name and "Server" not in p.name]
    # It lives for a second or two: not worth a second compiler, or threads for the garbage.
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-cp", os.pathsep.join(path)]
    return subprocess.run(
        [find_java(), *options, "groovy.ui.GroovyMain", str(script), *map(str, args)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
