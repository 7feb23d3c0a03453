"""The rules of deploy/prometheus, tried by Prometheus's own tool: each alert fires, and does not fire."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.needs import missing_server

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
ALERTS: list[dict[str, Any]] = [
    rule
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
NAMES = [rule["alert"] for rule in ALERTS]

Series = dict[str, str]
"""By name and labels, a value a minute, as promtool writes them: "0+60x20" grows by 60, 20 times."""


def up(job: str, values: str) -> Series:
    return {f'up{{job="{job}",instance="a"}}': values}


def gateway(name: str, values: str, labels: str = "") -> Series:
    return {f'forebay_{name}{{job="gateway",instance="a"{labels}}}': values}


def consumer(name: str, values: str, labels: str = ',queue="orders"') -> Series:
    return {f'forebay_{name}{{job="consumer",instance="b"{labels}}}': values}


def moving(waiting: str, leaving: str, accepted: str = "0x60") -> Series:
    return {
        **gateway("gateway_messages_total", accepted, ',queue="orders",outcome="accepted"'),
        **consumer("queue_waiting", waiting, ',queue="orders",broker="b"'),
        **consumer("queue_oldest_seconds", "400x60", ',queue="orders",broker="b"'),
        **consumer("consumer_messages_total", leaving, ',queue="orders",outcome="stored"'),
    }


def paused(reason: str, values: str) -> Series:
    return consumer("consumer_queue_paused", values, f',queue="orders",reason="{reason}"')


def destination(reason: str, values: str) -> Series:
    return consumer("consumer_paused", values, f',destination="database",reason="{reason}"')


def journal(held: str, works: str, oldest: str) -> Series:
    return {
        **gateway("journal_messages", held),
        **gateway("gateway_outlet_works", works, ',outlet="broker"'),
        **gateway("journal_oldest_seconds", oldest),
    }


def filling(held: str) -> Series:
    return {**gateway("journal_bytes", held), **gateway("journal_limit_bytes", "1000000x60")}


def room(size: str, left: str) -> Series:
    return {
        **consumer("queue_bytes", size, ',queue="orders",broker="b"'),
        **consumer("queue_room_bytes", left),
    }


def publish(slow: str, quick: str) -> Series:
    """A histogram of which the first bucket is quick, and the last slow."""
    bucket = "gateway_publish_seconds_bucket"
    return {
        **gateway(bucket, quick, ',queue="orders",le="0.1"'),
        **gateway(bucket, slow, ',queue="orders",le="10"'),
        **gateway(bucket, slow, ',queue="orders",le="+Inf"'),
    }


REFUSED = ',queue="orders",outcome="queue-full"'
MISSED = ',queue="orders",outcome="idempotency-conflict"'
DEAD = ',queue="orders",outcome="dead"'

CASES: dict[str, tuple[Series, Series]] = {
    "ForebayNoGateway": (up("gateway", "0x60"), up("gateway", "1x60")),
    "ForebayGatewayDown": (up("gateway", "0x60"), up("gateway", "1x60")),
    "ForebayGatewayNotReady": (gateway("gateway_ready", "0x60"), gateway("gateway_ready", "1x58 0 0")),
    "ForebayRefusing": (
        gateway("gateway_messages_total", "0+60x60", REFUSED),
        # A client's own mistake is no trouble of ours.
        gateway("gateway_messages_total", "0+60x60", MISSED),
    ),
    "ForebayOverloaded": (
        gateway("gateway_refused_total", "0+60x60", ',problem="overloaded"'),
        gateway("gateway_refused_total", "0+60x60", ',problem="body-too-large"'),
    ),
    "ForebaySlowPublish": (publish("0+600x60", "0+300x60"), publish("0+600x60", "0+600x60")),
    "ForebayBrokerAway": (
        gateway("gateway_outlet_works", "0x60", ',outlet="broker"'),
        gateway("gateway_outlet_works", "0x60", ',outlet="fallback-1"'),
    ),
    "ForebayConsumerWithoutBroker": (
        consumer("consumer_connected", "0x60"),
        {**consumer("consumer_connected", "0x60"), 'forebay_consumer_connected{queue="orders"}': "1x60"},
    ),
    "ForebayJournalFilling": (filling("0+10000x60"), filling("1000x60")),
    "ForebayJournalNotDrained": (journal("50x60", "1x60", "700x60"), journal("50x60", "0x60", "700x60")),
    "ForebayJournalSetAside": (gateway("journal_set_aside", "1x60"), gateway("journal_set_aside", "0x60")),
    "ForebayNoConsumer": (up("consumer", "0x60"), up("consumer", "1x60")),
    "ForebayConsumerDown": (up("consumer", "0x60"), up("consumer", "1x60")),
    "ForebayDestinationUnavailable": (
        destination("unavailable", "1x60"),
        destination("unavailable", "1 1 0x58"),
    ),
    "ForebayDestinationMisconfigured": (
        destination("misconfigured", "1x60"),
        destination("unavailable", "1x60"),
    ),
    "ForebayQueueSuspicious": (paused("suspicious", "1x60"), paused("operator", "1x60")),
    "ForebayQueuePausedForLong": (paused("operator", "1x80"), paused("operator", "0x40 1x20")),
    "ForebayFallingBehind": (
        moving("1000+60x60", "0+600x60", "0+660x60"),
        # As much waits, and it is gone in five minutes.
        moving("100000-1500x60", "0+20000x60", "0+1000x60"),
    ),
    "ForebayStandingStill": (
        moving("1000x60", "500x60"),
        {**moving("1000x60", "500x60"), **paused("operator", "1x60")},
    ),
    "ForebayStuck": (consumer("consumer_busy_seconds", "300x60"), consumer("consumer_busy_seconds", "1x60")),
    "ForebayDeadLetters": (
        consumer("consumer_messages_total", "0+1x60", DEAD),
        consumer("consumer_messages_total", "0+1x60", DEAD.replace('"dead"', '"retried"')),
    ),
    "ForebayQueueFilling": (room("0+6000x60", "300000x60"), room("6000x60", "300000x60")),
    "ForebayWorkerBug": (
        consumer("consumer_restarts_total", "0+1x60", ',queue="orders",cause="bug"'),
        consumer("consumer_restarts_total", "0+1x60", ',queue="orders",cause="broker"'),
    ),
}


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        missing_server("promtool is not installed: apt-get install prometheus")
    assert found is not None
    return found


def ran(*args: str) -> str:
    done = subprocess.run([promtool(), *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    ran("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_each_alert_fires_and_does_not_fire(tmp_path: Path) -> None:
    assert sorted(CASES) == sorted(NAMES)
    tests = [
        {
            "name": f"{name} {'fires' if fires else 'is quiet'}",
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": "59m" if name != "ForebayQueuePausedForLong" else "75m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for name, cases in CASES.items()
        for series, fires in zip(cases, (True, False), strict=True)
    ]
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(r) for r in RULES], "evaluation_interval": "1m", "tests": tests})
    )

    ran("test", "rules", str(file))


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_what_to_do_and_where_more_is_written(rule: dict[str, Any]) -> None:
    told = rule["annotations"]
    assert sorted(told) == ["action", "description", "runbook_url", "summary"]
    assert told["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_runbook_has_an_entry_for_each_alert_in_the_same_order() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()

    assert re.findall(r"^## (Forebay\w+)$", text, re.MULTILINE) == NAMES
