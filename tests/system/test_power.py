"""A cut of power under the embedded queue; twenty of them are `make soak ONLY=power`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.needs import missing_privilege
from tests.system.power import CannotCut, Cut, cut_power_once


def cut(folder: Path, *, after: int, weakened: bool = False) -> Cut:
    try:
        return cut_power_once(folder, after=after, weakened=weakened)
    except CannotCut as error:
        missing_privilege(str(error))


@pytest.mark.parametrize("after", [50, 700])
def test_what_was_answered_202_survives_a_power_cut(tmp_path: Path, after: int) -> None:
    result = cut(tmp_path / "site", after=after)

    assert result.promised >= after
    assert (result.lost, result.altered) == (0, 0), result


def test_the_power_cut_has_teeth(tmp_path: Path) -> None:
    """The same gateway, its commits not forced to the disk, loses what it answered 202."""
    result = cut(tmp_path / "site", after=700, weakened=True)

    assert result.lost > 0, result
