from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from forebay_rolling.config import Checks, Compose, Config, Nginx, checked_version, read_config
from forebay_rolling.errors import UsageError

GOOD = """
kind = "processes"
directory = "/var/lib/forebay/rolling"
command = ["/opt/forebay/{version}/bin/forebay"]
gateway_ports = [8101, 8102, 8103]
consumer_ports = [8201, 8202, 8203]
surge = 1

[nginx]
upstream = "/etc/nginx/upstream/gateways.conf"
pid = "/run/nginx/nginx.pid"

[checks]
settle = 3

[environment]
FOREBAY_QUEUE_NAMES = "orders,forebay-canary"
"""


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "rolling.toml").write_text(GOOD)

    config = read_config(tmp_path / "rolling.toml")

    assert config.gateways == config.consumers == 2
    assert config.checks.settle == 3.0
    assert config.nginx is not None
    assert config.nginx.upstream == Path("/etc/nginx/upstream/gateways.conf")


@pytest.mark.parametrize(
    ("line", "instead", "complaint"),
    [
        ("surge = 1", "surge = 2", "surge cannot be 2"),
        ("surge = 1", "serge = 1", "unknown setting serge"),
        ("settle = 3", 'settle = "3 s"', "settle cannot be '3 s'"),
        ("settle = 3", "settle = -1", "checks.settle cannot be -1"),
        ("settle = 3", "patience = 3", "unknown setting checks.patience"),
        ('pid = "/run/nginx/nginx.pid"', "", "nginx. is incomplete"),
        ('"/run/nginx/nginx.pid"', '"nginx.pid"', "must be an absolute path"),
        ("[8101, 8102, 8103]", "[8101, 8102]", "gateway_ports has 2 ports; 3 are needed"),
        ("[8201, 8202, 8203]", "[8101, 8202, 8203]", "have a port in common"),
        ('kind = "processes"', 'kind = "compose"', "needs a table"),
        ('kind = "processes"', "kind =", "is no TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    tmp_path: Path, line: str, instead: str, complaint: str
) -> None:
    assert line in GOOD
    (tmp_path / "rolling.toml").write_text(GOOD.replace(line, instead))

    with pytest.raises(UsageError, match=complaint):
        read_config(tmp_path / "rolling.toml")


@pytest.mark.parametrize(
    "text", ["", "..", "../1", "a/b", "-rf", "1;reboot", "1 2", "1\n", "ä", "x" * 65, "$(id)"]
)
def test_a_version_is_never_more_than_a_name(text: str) -> None:
    with pytest.raises(UsageError, match="is no version"):
        checked_version(text)


@pytest.mark.parametrize("kind", ["processes", "compose"])
def test_the_examples_can_be_read(kind: str) -> None:
    config = read_config(Path(__file__).parents[3] / f"deploy/rolling/examples/{kind}.toml")

    assert config.kind == kind


def test_each_setting_is_described() -> None:
    text = (Path(__file__).parents[3] / "docs/rolling.md").read_text()
    settings = [f.name for f in fields(Config) if f.name not in ("checks", "nginx", "compose")]
    settings += [f"{s}.{f.name}" for s, k in (("checks", Checks), ("nginx", Nginx)) for f in fields(k)]
    settings += [f"compose.{f.name}" for f in fields(Compose)]

    assert not [name for name in settings if f"`{name}`" not in text]
