"""What `config check`, `doctor` and `gateway` say of the files that the gateway reads."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.servers.certificates import Certificates
from tests.unit.cli.installation import Installation
from tests.unit.cli.processes import Running, forebay


def finding(site: Installation, check: str) -> tuple[str, str]:
    findings: list[dict[str, Any]] = site.run("doctor", "--json").json["findings"]
    return next((f["verdict"], f["text"]) for f in findings if f["check"] == check)


@pytest.mark.parametrize("command", [("config", "check"), ("gateway", "--port", "0")])
def test_a_broken_schema_is_told_before_anything_starts(
    site: Installation, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "order.json").write_text('{"type": "objekt"}')
    (tmp_path / "forebay.toml").write_text('[queues.orders.schema]\nfile = "order.json"\n')

    done = site.run(*command)

    assert done.code == 2
    assert f"queues.orders.schema.file {tmp_path}/order.json is no JSON Schema" in done.err


def test_doctor_checks_schemas(site: Installation, tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text('[queues.orders.schema]\nfile = "order.json"\n')
    (tmp_path / "order.json").write_text('{"type": "object"}')
    assert finding(site, "schema orders")[0] == "ok"
    (tmp_path / "order.json").write_text("{")
    assert finding(site, "schema orders")[0] == "fail"
    (tmp_path / "forebay.toml").write_text('[queues.orders.schema]\nfile = "order.json"\nmode = "off"\n')
    assert finding(site, "schema orders")[0] == "warn"


def test_doctor_checks_the_file_of_api_keys(
    site: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv("FOREBAY_GATEWAY__KEYS_FILE", str(file))
    assert finding(site, "api keys")[0] == "fail"
    file.write_text("{}")
    assert "no valid key" in finding(site, "api keys")[1]
    site.run("api-keys", "create", "shop")
    assert finding(site, "api keys") == ("ok", f"1 valid in {file}")
    file.chmod(0o666)
    assert finding(site, "api keys")[0] == "warn"
    file.write_text("{")
    assert finding(site, "api keys")[0] == "fail"


def test_doctor_checks_the_certificate(
    site: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(tmp_path)
    cert, key = certificates.server
    monkeypatch.setenv("FOREBAY_GATEWAY__TLS_CERT", str(cert))
    monkeypatch.setenv("FOREBAY_GATEWAY__TLS_KEY", str(key))
    assert finding(site, "tls")[0] == "ok"
    monkeypatch.setenv("FOREBAY_GATEWAY__TLS_KEY", str(certificates.client[1]))
    assert finding(site, "tls")[0] == "fail"


def test_keys_made_and_revoked_while_workers_serve_beyond_loopback(tmp_path: Path) -> None:
    """The whole way, with real processes: refused start, first key, sending, rotation, revocation."""
    env = {"FOREBAY_QUEUE_NAMES": "orders", "FOREBAY_BROKER__URL": "sqlite:///q.db"}
    start = ("gateway", "--host", "0.0.0.0", "--port", "0", "--workers", "2")
    refused = forebay(*start, cwd=tmp_path, env=env)
    assert (refused.returncode, "forebay api-keys create" in refused.stderr) == (2, True)

    env["FOREBAY_GATEWAY__KEYS_FILE"] = "keys.json"
    missing = forebay(*start, cwd=tmp_path, env=env)
    assert (missing.returncode, "forebay api-keys create NAME" in missing.stderr) == (2, True)
    old = forebay("api-keys", "create", "shop", cwd=tmp_path, env=env).stdout.strip()
    with Running(*start, cwd=tmp_path, env=env) as gateway:
        port = gateway.until(r"http://0\.0\.0\.0:(\d+)")[1]

        def send(key: str) -> int:
            here = {"FOREBAY_URL": f"http://127.0.0.1:{port}", "FOREBAY_API_KEY": key}
            return forebay("send", "orders", "{}", cwd=tmp_path, env=here).returncode

        assert send(old) == 0
        assert send("") == 1
        new = forebay(
            "api-keys", "create", "shop-2", "--tenant", "shop", cwd=tmp_path, env=env
        ).stdout.strip()
        for _worker in range(2):
            gateway.until("API keys read again")
        assert send(new) == 0
        forebay("api-keys", "revoke", "shop", cwd=tmp_path, env=env)
        for _worker in range(2):
            gateway.until("API keys read again")
        assert (send(old), send(new)) == (1, 0)
        assert gateway.end(signal.SIGTERM) == 0
    assert old not in gateway.output + (tmp_path / "keys.json").read_text()
