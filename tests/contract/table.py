"""
`make contract`: the contract suite on every broker, and its result as the table in docs/drivers.md.

The table is made of what this run found; a failure is in it like everything else, and is
this command's exit code too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import apsw

from forebay.testing.broker_contract.consuming import ConsumingContract
from forebay.testing.broker_contract.dying import DeadLetterContract
from forebay.testing.broker_contract.model import ModelContract
from forebay.testing.broker_contract.ordering import OrderContract
from forebay.testing.broker_contract.outages import OutageContract
from forebay.testing.broker_contract.publishing import PublishingContract
from tests.servers import kafka

PAGE = Path(__file__).parents[2] / "docs" / "drivers.md"
BEGIN, END = "<!-- made by `make contract` -->", "<!-- end -->"

COLUMNS = {
    "TestMemory": "memory",
    "TestSQLite": "embedded queue",
    "TestRabbitMQ": "RabbitMQ, 1 node",
    "TestRabbitMQCluster": "RabbitMQ, 3 nodes",
    "TestKafka": "Kafka, 1 node",
    "TestKafkaCluster": "Kafka, 3 nodes",
}
PARTS = {
    "publishing": PublishingContract,
    "receiving and settling": ConsumingContract,
    "order through failures": OrderContract,
    "dead letters": DeadLetterContract,
    "outages and restarts": OutageContract,
    "random histories": ModelContract,
}


@dataclass
class Cell:
    """One part of the suite on one broker."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        if self.counts["failed"]:
            return f"**{self.counts['failed']} failed** of {self.counts.total()}"
        skipped = f", {self.counts['skipped']} skipped" if self.counts["skipped"] else ""
        return f"{self.counts['passed']} passed{skipped}" if self.counts else "–"


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    """What became of a test, and why it was skipped."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed", ""
    skipped = case.find("skipped")
    if skipped is not None:
        return "skipped", str(skipped.get("message", "")).removeprefix("Skipped: ")
    return "passed", ""


def _rabbitmq_version() -> str:
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else "not installed"


def table(report: Path) -> tuple[str, int]:
    """The table as Markdown, and how many of its tests failed."""
    part_of = {name: part for part, cls in PARTS.items() for name in vars(cls) if name.startswith("test_")}
    cells: defaultdict[tuple[str, str], Cell] = defaultdict(Cell)
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):  # our own pytest's
        cls = str(case.get("classname")).rpartition(".")[2]
        part = part_of.get(str(case.get("name")).partition("[")[0])
        if cls not in COLUMNS or part is None:
            continue
        what, why = outcome(case)
        cells[part, cls].counts[what] += 1
        if what == "skipped":
            reasons[why][COLUMNS[cls]] += 1
    versions = (
        f"SQLite {apsw.sqlite_lib_version()}, RabbitMQ {_rabbitmq_version()}, Kafka {kafka.VERSION},"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )
    lines = [f"| {versions} | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {part} | {' | '.join(str(cells[part, cls]) for cls in COLUMNS)} |" for part in PARTS]
    if reasons:
        lines += ["", "Skipped, with the reason that the suite gives:", ""]
        lines += [f"- {why}: {', '.join(sorted(where))}" for why, where in sorted(reasons.items())]
    return "\n".join(lines), sum(cell.counts["failed"] for cell in cells.values())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "4", "--dist", "worksteal", "tests/contract"]
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=PAGE.parents[1])
        if done.returncode not in (0, 1):
            return done.returncode
        text, failed = table(report)
    page = PAGE.read_text()
    block = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not block.search(page):
        print(f"{PAGE} has no place for the table: {BEGIN} … {END}", file=sys.stderr)
        return 2
    PAGE.write_text(block.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page))
    print(f"{text}\n\nwritten to {PAGE.relative_to(PAGE.parents[1])}")
    return 1 if failed else done.returncode


if __name__ == "__main__":
    sys.exit(main())
