"""The rotation of plain processes, with a stand-in for nginx where it must fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forebay_rolling.config import Nginx
from forebay_rolling.errors import CheckFailed
from forebay_rolling.nginx import Rotation

A, B = "127.0.0.1:8101", "127.0.0.1:8102"


class Killed(BaseException):
    """The deployer is gone, at this very point."""


def rotation(folder: Path, *reload: str) -> Rotation:
    (folder / "nginx.pid").write_text(f"{os.getpid()}\n")
    (folder / "gateways.conf").write_text(f"server {A} max_fails=0;\n")
    settings = Nginx(
        upstream=folder / "gateways.conf", pid=folder / "nginx.pid", reload=reload, closing=0.0, let_go=0.0
    )
    return Rotation(settings)


def test_a_list_that_nginx_was_not_told_of_is_read_by_the_next_deployer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def killed(_: Rotation) -> None:
        raise Killed

    def reload(self: Rotation) -> None:
        told.append(", ".join(self.addresses()))

    first = rotation(tmp_path)
    monkeypatch.setattr(Rotation, "_reload", killed)
    with pytest.raises(Killed):
        first.change([B])
    monkeypatch.setattr(Rotation, "_reload", reload)
    second = Rotation(Nginx(upstream=tmp_path / "gateways.conf", pid=tmp_path / "nginx.pid", closing=0.0))

    second.settle()
    second.settle()

    assert told == [B]


@pytest.mark.parametrize("command", ["/no/such/program", "/bin/false"])
def test_a_reload_that_fails_leaves_the_list_that_nginx_has(tmp_path: Path, command: str) -> None:
    this = rotation(tmp_path, command)

    with pytest.raises(CheckFailed, match=r"nginx\.reload failed"):
        this.change([B])

    assert this.addresses() == [A]
    assert not (tmp_path / "closing").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    this = Rotation(Nginx(upstream=tmp_path / "gateways.conf", pid=tmp_path / "no/nginx.pid"))

    with pytest.raises(CheckFailed, match="cannot change who is in rotation"):
        this.change([B])
