"""
Whether a gateway or consumer on this machine is ready, for whoever supervises it.

    python -m forebay.healthcheck [URL]

`forebay healthcheck` is the same with help and options. A supervisor asks every few
seconds, for ever, and so this imports a tenth of what the command line does.
"""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

READY = "http://127.0.0.1:8080/readyz"
TIMEOUT = 4.0
"""Seconds that the answer may take."""


def ask(url: str = READY, timeout: float = TIMEOUT) -> tuple[bool, str]:
    """
    True for an answer of 200, and what was said.

    A certificate is not checked: the process is asked at its own address, for which it has none.

    Raises:
        ValueError: the URL cannot be read.
    """
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ValueError(f"{url!r} is no http or https URL; write it like {READY}")
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=timeout)
    if where.scheme == "https":
        import ssl

        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            where.hostname, where.port, timeout=timeout, context=unchecked
        )
    try:
        connection.request("GET", where.path or "/readyz")
        answer = connection.getresponse()
        said = answer.read(2000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{url} does not answer: {error or type(error).__name__}"
    finally:
        connection.close()
    if answer.status != http.client.OK:
        return False, f"{url} answered {answer.status}: {said}"
    return True, said


if __name__ == "__main__":
    ready, said = ask(sys.argv[1] if sys.argv[1:] else READY)
    print(said)
    sys.exit(not ready)
