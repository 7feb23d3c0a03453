"""
The commands of docs/operations.md, "Backup and restore", while messages flow.

What was accepted before the copy began is there after the restore, once: of what waited in a journal,
in the queue, and of what was stored.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.postgres import Postgres, free_port
from tests.system.harness import Site, until

DOC = Path(__file__).parents[2] / "docs" / "operations.md"
QUEUE = "orders"
SENT = 200
"""By each of the two senders, before the copy begins."""


def commands() -> tuple[str, str]:
    """To copy, and to restore."""
    section = DOC.read_text().split("## Backup and restore")[1].split("\n## ")[0]
    copy, restore = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    return copy, restore


def run(script: str, site: Site, database: str, backup: Path) -> None:
    env = {
        **site.env,
        # `python` is the one that Forebay is installed in.
        "PATH": f"{Path(sys.executable).parent}:{site.env['PATH']}",
        "JOURNAL": site.settings["GATEWAY__JOURNAL"],
        "QUEUE": str(site.queue_file),
        "DATABASE": database,
        "BACKUP": str(backup),
    }
    done = subprocess.run(["sh", "-euc", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def installation(folder: Path, database: str) -> Site:
    folder.mkdir()
    return Site(folder, database, queues=QUEUE, settings={"GATEWAY__JOURNAL": str(folder / "journal")})


def test_what_was_accepted_before_the_copy_is_there_after_the_restore(
    tmp_path: Path, postgres: Postgres, postgres_url: str
) -> None:
    copy, restore = commands()
    backup = tmp_path / "backup"
    backup.mkdir()
    site = installation(tmp_path / "site", postgres_url)
    site.migrate()
    try:
        site.gateway()
        # Its broker is not there: all that it accepts goes into the journal.
        journaling = free_port()
        site.gateway(port=journaling, FOREBAY_BROKER__URL=f"amqp://127.0.0.1:{free_port()}/")
        # So slow that the queue fills.
        site.consumer(FOREBAY_QUEUES__ORDERS__RATE="50")
        (site.folder / "lines").write_text("".join(f'{{"n": {n}}}\n' for n in range(20 * SENT)))
        records = []
        for port in (site.port, journaling):
            record = site.folder / f"sent-{port}"
            record.touch()
            records.append(record)
            site.start(
                "send", QUEUE, "--ndjson", "lines", "--rate", "150", "--record", str(record),
                "--url", f"http://127.0.0.1:{port}", log=f"send-{port}",
            )  # fmt: skip
        until(lambda: all(r.read_text().count("\n") > SENT for r in records), within=60, what="the load")
        until(site.stored, what="a first row")
        accepted = "".join(r.read_text().rpartition("\n")[0] + "\n" for r in records)
        run(copy, site, postgres_url, backup)
        assert site.queue(QUEUE)["waiting"] > 0
    finally:
        site.close()
    # All is lost but the copy.
    shutil.rmtree(tmp_path / "site")

    database = postgres.create_database()
    site = installation(tmp_path / "new", database)
    try:
        run(restore, site, database, backup)
        site.gateway()
        site.consumer()
        (site.folder / "accepted").write_text(accepted)
        done = site.run("verify", "accepted", "--wait", "60s")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        site.close()
