"""Python's cyclic garbage collector, which would spend a third of a busy consumer's time on nothing."""

from __future__ import annotations

import gc

YOUNG = 5_000
"""
Objects made and not yet gone after which the youngest are looked through; Python's default is 700.

A batch is some thousands, none of them garbage. Not more than this: what a handler leaves behind in
cycles, large bodies perhaps, waits for it.
"""


def spare() -> None:
    """What is loaded by now stays for good: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
