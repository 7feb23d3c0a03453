"""A real Prometheus with the rules of deploy/prometheus, on a free loopback port; stopped by its pid."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.needs import missing_server
from tests.servers.postgres import free_port
from tests.system.harness import until

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        found = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """All rules, each with its "health" at the last evaluation."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found


@contextmanager
def running(folder: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """Scrapes these ports of this host, by job, each second; with the rules as they are deployed."""
    binary = shutil.which("prometheus")
    if binary is None:
        missing_server("prometheus is not installed: apt-get install prometheus")
    assert binary is not None
    settings = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DEPLOY / "rules" / "*.yml")]
    for job in settings["scrape_configs"]:
        # Names are those of containers; the jobs are the same.
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings))
    port = free_port()
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(
            [
                binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        until(prometheus.ready, what="Prometheus")
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder / "tsdb", ignore_errors=True)
