"""What a test does when the machine lacks what it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def missing_server(why: str) -> NoReturn:
    """End the test: skipped on a laptop, failed in CI, where a missing server hides a broken build."""
    if IN_CI:
        pytest.fail(f"in CI nothing may be missing: {why}", pytrace=False)
    pytest.skip(why)


def missing_privilege(why: str) -> NoReturn:
    """End the test: what it does needs rights that this user, here or in CI, does not have."""
    pytest.skip(why)
