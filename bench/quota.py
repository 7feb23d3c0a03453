"""A share of a core for a process of ours, by a control group; where the machine lets us make one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PERIOD_US = 100_000
V1 = Path("/sys/fs/cgroup/cpu")
V2 = Path("/sys/fs/cgroup")


class NoQuota(Exception):
    """Why no process can be held to a share here."""


@contextlib.contextmanager
def held(pids: Sequence[int], cores: float) -> Iterator[None]:
    """
    Each of these processes to so much of a core.

    Raises:
        NoQuota
    """
    made: list[Path] = []
    try:
        for pid in pids:
            group = _group(f"forebay-bench-{os.getpid()}-{pid}")
            made.append(group)
            quota = int(cores * PERIOD_US)
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text(f"{PERIOD_US}")
                (group / "cpu.cfs_quota_us").write_text(f"{quota}")
            else:
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            (group / "cgroup.procs").write_text(f"{pid}")
    except OSError as error:
        _remove(made)
        raise NoQuota(f"cannot be set: {error}") from error
    try:
        yield
    finally:
        _remove(made)


def _group(name: str) -> Path:
    """
    Raises:
        NoQuota, OSError
    """
    if (V1 / "cpu.cfs_quota_us").exists() or (V1 / "cgroup.procs").exists():
        group = V1 / name
    elif "cpu" in _controllers():
        group = V2 / name
    else:
        raise NoQuota("there is no control group for CPU time")
    group.mkdir()
    return group


def _controllers() -> list[str]:
    try:
        return (V2 / "cgroup.subtree_control").read_text().split()
    except OSError:
        return []


def _remove(groups: Sequence[Path]) -> None:
    for group in groups:
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()
