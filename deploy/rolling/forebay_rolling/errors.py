"""
What can go wrong.

RollingError
├── UsageError    the configuration or the command is wrong; nothing was touched   exit code 2
├── Busy          another deployer is at work on this installation                 exit code 4
└── CheckFailed   an instance did not do what it should                            exit code 1, or 3 where
                                                                                   going back failed, too
"""

from __future__ import annotations


class RollingError(Exception):
    """One sentence for the operator, with the next step where there is one."""

    code = 1


class UsageError(RollingError):
    """The configuration or the command line is wrong; nothing was touched."""

    code = 2


class Busy(RollingError):
    """Another deployer is at work on this installation."""

    code = 4


class CheckFailed(RollingError):
    """An instance did not start, prove itself or stop as it should."""


class RollbackFailed(RollingError):
    """The new version failed, and the old one could not be brought back everywhere."""

    code = 3
