"""This commit and the one before it on one journal and one database. Under load: test_rolling.py."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers.postgres import free_port
from tests.system.harness import Process, Site
from tests.system.releases import Releases

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_what_one_version_journaled_the_other_one_publishes_and_stores(
    bare_site: Site, tmp_path: Path, first: str, second: str
) -> None:
    """With all that a message can carry; the schema is the new version's, as it is in a roll."""
    site = bare_site
    site.queues = "orders"
    site.settings["GATEWAY__JOURNAL"] = str(tmp_path / "journal")
    releases = Releases(tmp_path / "releases")
    releases.add_previous("old")
    releases.add("new")

    def run(version: str, *arguments: str) -> str:
        command = [releases.command.format(version=version), *arguments]
        done = subprocess.run(
            command, env=site.env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("new", "migrate")
    away = site.env | {"FOREBAY_BROKER__URL": f"amqp://guest@127.0.0.1:{free_port()}/"}
    command = [releases.command.format(version=first), "gateway", "--port", str(site.port)]
    gateway = Process(command, env=away, cwd=tmp_path, log=tmp_path / "gateway.log")
    site.processes.append(gateway)
    gateway.until(site.ready, within=60, what="the gateway's /readyz")
    accepted = site.post(
        "orders", b"precious", Idempotency_Key="k-1", Forebay_Ordering_Key="customer-7",
        Forebay_Meta_Origin="shop", Forebay_TTL="1d",
        traceparent=TRACE,
    )  # fmt: skip
    assert (accepted.status, accepted.json["durability"]) == (202, "journaled")
    assert gateway.stop(within=60) == 9  # it says what it leaves behind

    drained = json.loads(run(second, "journal", "drain", "--json"))
    run(second, "consume", "--until-empty", "--timeout", "60s")

    assert drained == {"published": 1, "set_aside": 0, "left": 0}
    with closing(sqlite3.connect(tmp_path / "forebay.db")) as database:
        ((id, body, key, headers),) = database.execute("select id, body, key, headers from messages")
    assert (id, body, key) == (accepted.json["id"], b"precious", "customer-7")
    assert json.loads(headers) == {"origin": "shop", "traceparent": TRACE}
