"""Certificates for tests of encrypted connections, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Certificates:
    """A certificate authority and what it signed, as PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._run(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests",
            "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip
        self.server = self.sign("broker.test")
        self.client = self.sign("a-client")
        self._run("rsa", "-aes128", "-passout", "pass:open", "-in", "a-client.key", "-out", "locked.key")
        self.locked = folder / "locked.key"

    def sign(self, name: str) -> tuple[Path, Path]:
        (self.folder / "extensions").write_text(f"subjectAltName = DNS:{name}\n")
        self._run(
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        self._run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem",
        )  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
