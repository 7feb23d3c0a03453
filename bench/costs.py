"""CPU time of a stretch of this process's work."""

from __future__ import annotations

import resource
import time


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Cost:
    """From `begin` to `end`: CPU time, user and system, and wall time, by message."""

    def __init__(self) -> None:
        self.begun = False
        self.cpu_us = 0.0
        self.per_second = 0.0

    def begin(self) -> None:
        self.begun = True
        self._cpu, self._at = cpu(), time.perf_counter()

    def end(self, messages: int) -> None:
        self.cpu_us = (cpu() - self._cpu) / messages * 1e6
        self.per_second = messages / (time.perf_counter() - self._at)
