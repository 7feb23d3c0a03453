"""Steps of a long run that are not done again when it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from tests import flights

CACHE = flights.CACHE / "soak"


class Steps:
    """The steps of one part; each done once, its result kept, until the part is recorded."""

    def __init__(self, part: str) -> None:
        self._file = CACHE / f"{part}.json"
        CACHE.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def step(self, name: str, do: Callable[[], dict[str, Any]]) -> None:
        if name in self.results:
            print(f"{name}: done before the interruption", file=sys.stderr)
            return
        print(f"{name} ...", file=sys.stderr)
        self.results[name] = do()
        print(f"{name}: {self.results[name]}", file=sys.stderr)
        self._file.write_text(json.dumps(self.results))

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)
