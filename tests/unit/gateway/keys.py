"""API keys for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.keys_file import changing, make


class Keys:
    """A file of keys, and the keys themselves by name."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.path.write_text("{}")
        self.of: dict[str, str] = {}

    def add(self, name: str, **limits: Any) -> dict[str, str]:
        """Make a key; returns the headers that carry it."""
        key, kept = make(name, **({"queues": ["*"]} | limits))
        with changing(self.path) as keys:
            keys.append(kept)
        self.of[name] = key
        return self.headers(name)

    def revoke(self, name: str) -> None:
        with changing(self.path) as keys:
            keys[:] = [key for key in keys if key.name != name]

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.of[name]}"}
