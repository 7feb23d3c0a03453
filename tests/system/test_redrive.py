"""300 dead letters sent back by real commands: with a canary, by two at once, killed in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import Process, Site

POISON = 300

pytestmark = pytest.mark.system


@pytest.fixture
def repaired(site: Site) -> tuple[Site, Process]:
    """A site where 300 messages have died of a constraint that is gone now, with its consumer running."""
    site.queues = "orders"
    site.settings["QUEUE_DEFAULTS__DEAD_LETTER_BUDGET__ENABLED"] = "false"
    site.sql("alter table messages add constraint none_at_all check (false)")
    lines = "\n".join(json.dumps({"order": n}) for n in range(POISON))
    site.gateway()
    done = site.run(
        "send", "orders", "--ndjson", "-", "--url", site.url, "--record", "sent.txt", stdin=lines.encode()
    )
    assert done.returncode == 0, done.stderr
    consumer = site.consumer("orders")
    consumer.until(lambda: count(site, "dead") == POISON, what="the dead letters", within=60)
    site.sql("alter table messages drop constraint none_at_all")
    return site, consumer


def count(site: Site, status: str) -> int:
    return int(site.sql(f"select count(*) from dead_letters where status = '{status}'")[0][0])


def redrive(site: Site, *args: str) -> dict[str, Any]:
    done = site.run("dead-letters", "redrive", *args, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def all_have_arrived_once(site: Site, consumer: Process) -> None:
    consumer.until(lambda: count(site, "resolved") == POISON, what="all resolved", within=60)
    verified = site.run("verify", "sent.txt", "--wait", "30s", "--json")
    assert verified.returncode == 0, verified.stderr
    figures = json.loads(verified.stdout)
    assert (figures["stored"], figures["dead"], figures["duplicated"]) == (POISON, 0, 0)


def test_a_canary_sends_all_of_them_back_once_the_table_is_repaired(repaired: tuple[Site, Process]) -> None:
    site, consumer = repaired

    job = redrive(site, "--all")

    assert (job["state"], job["sent"], job["arrived"], job["died_again"]) == ("done", POISON, POISON, 0)
    all_have_arrived_once(site, consumer)


def test_a_canary_stops_at_the_first_while_nothing_is_repaired(repaired: tuple[Site, Process]) -> None:
    site, _ = repaired
    site.sql("alter table messages add constraint none_at_all check (false)")

    done = site.run("dead-letters", "redrive", "--all", "--yes", "--json")

    assert done.returncode == 8
    job = json.loads(done.stdout)
    assert (job["state"], job["sent"], job["died_again"]) == ("stopped", 1, 1)
    assert count(site, "dead") == POISON


def test_two_operators_at_once_send_each_one_once(repaired: tuple[Site, Process]) -> None:
    """The same selection is refused to the second; over another one that overlaps they share the work."""
    site, consumer = repaired
    # Slow enough that the third comes while the two are at work, however slowly a command starts.
    args = ("dead-letters", "redrive", "--no-canary", "--rate", "15", "--yes", "--json")
    ann = site.start(*args, "--all", log="ann", env={"FOREBAY_OPERATOR": "ann"})
    bob = site.start(*args, "--queue", "orders", log="bob", env={"FOREBAY_OPERATOR": "bob"})
    ann.until(lambda: count(site, "dead") < POISON, what="the first page")
    third = site.run("dead-letters", "redrive", "--all", "--yes")

    assert third.returncode == 5
    assert "of ann over the same dead letters is running" in third.stderr
    assert (ann.wait(), bob.wait()) == (0, 0)
    sent = site.sql("select sum(sent) from redrive_jobs")[0][0]
    assert sent == POISON
    all_have_arrived_once(site, consumer)
    who = {who for (who,) in site.sql("select who from audit_log where action = 'redrive'")}
    assert who == {"ann", "bob"}


def test_killed_in_the_middle_it_is_gone_on_with(repaired: tuple[Site, Process]) -> None:
    site, consumer = repaired
    command = site.start("dead-letters", "redrive", "--all", "--rate", "60", "--yes", log="killed")
    command.until(lambda: count(site, "dead") < POISON - 20, what="a part of it", within=60)
    command.kill()
    ((job,),) = site.sql("select id::text from redrive_jobs")
    assert count(site, "dead") > 0
    # Nobody need wait for the lease of a process that is known to be gone.
    site.sql("update redrive_jobs set lease_until = now() - interval '1 second'")

    done = redrive(site, "--resume", job)

    assert (done["state"], done["sent"]) == ("done", POISON)
    all_have_arrived_once(site, consumer)


def test_interrupted_it_pauses_and_can_be_resumed(repaired: tuple[Site, Process]) -> None:
    import signal

    site, consumer = repaired
    command = site.start("dead-letters", "redrive", "--all", "--rate", "60", "--yes", log="interrupted")
    command.until(lambda: count(site, "dead") < POISON - 20, what="a part of it", within=60)
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    ((job, state),) = site.sql("select id::text, state from redrive_jobs")
    assert state == "paused"
    assert f"--resume {job}" in Path(command.log).read_text()

    redrive(site, "--resume", job)

    all_have_arrived_once(site, consumer)
