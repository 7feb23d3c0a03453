"""What gateways and consumers tell of themselves: their /metrics, asked at every address of a name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import aiohttp

    from forebay.settings import Settings

TIMEOUT = 2.0
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared with, not bound

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Process:
    """One process that answered."""

    address: str
    ready: bool
    samples: dict[tuple[str, Labels], float]
    families: frozenset[str] = frozenset()
    """What it counts, though it may have counted nothing yet."""

    def counts(self, family: str) -> bool:
        return family.removesuffix("_total") in self.families

    def values(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The samples of this name that have these labels, among others perhaps."""
        wanted = labels.items()
        return [(dict(of), value) for (n, of), value in self.samples.items() if n == name and wanted <= of]

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None: there are none."""
        found = self.values(name, **labels)
        return sum(value for _, value in found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who was asked and who answered."""

    processes: tuple[Process, ...] = ()
    silent: tuple[tuple[str, str], ...] = ()
    """Addresses that did not answer, each with the reason."""
    named: bool = False
    """The settings name them, so that one who is silent is missed."""


@dataclass(frozen=True, slots=True)
class Whom:
    urls: tuple[str, ...]
    named: bool


def gateways_of(settings: Settings) -> Whom:
    """Those that [status] names, or the one that these settings would start."""
    if settings.status.gateways:
        return Whom(settings.status.gateways, True)
    one = settings.gateway
    scheme = "https" if one.tls_cert is not None else "http"
    return Whom((_url(scheme, one.host, one.port),) if one.port else (), False)


def consumers_of(settings: Settings) -> Whom:
    """The same for consumers: without a port of theirs there is nobody to ask."""
    if settings.status.consumers:
        return Whom(settings.status.consumers, True)
    one = settings.consumer
    return Whom((_url("http", one.health_host, one.health_port),) if one.health_port else (), False)


def _url(scheme: str, host: str, port: int) -> str:
    host = WILDCARDS.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def ask(session: aiohttp.ClientSession, whom: Whom) -> Asked:
    """Everybody at once, within TIMEOUT seconds. Never raises."""
    found: list[Process] = []
    silent: list[tuple[str, str]] = []

    async def one(url: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                found.append(await _scrape(session, url))
        except TimeoutError:
            silent.append((url, f"no answer within {TIMEOUT:g} s"))
        except Exception as error:
            # Whatever it is, from a refused connection to a page that is no metrics: it did not tell.
            silent.append((url, str(error) or type(error).__name__))

    places = await asyncio.gather(*(_addresses(url) for url in whom.urls))
    await asyncio.gather(*(one(url) for url in {url: None for urls in places for url in urls}))
    return Asked(
        processes=tuple(sorted(found, key=lambda p: p.address)),
        silent=tuple(sorted(silent)),
        named=whom.named,
    )


async def _addresses(url: str) -> Sequence[str]:
    """The URL once for each address that its name has; as it is where that cannot be told, or for TLS."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        return [url]
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                parts.hostname, parts.port or 80, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError):
        return [url]
    hosts = sorted({str(address[0]) for *_, address in found})
    if len(hosts) == 1 or parts.hostname == "localhost":
        return [url]
    return [_url("http", host, parts.port or 80) for host in hosts]


async def _scrape(session: aiohttp.ClientSession, url: str) -> Process:
    from prometheus_client.parser import text_string_to_metric_families

    async with session.get(f"{url}/readyz") as answer:
        ready = answer.status == 200
    async with session.get(f"{url}/metrics") as answer:
        answer.raise_for_status()
        text = await answer.text()
    families = [f for f in text_string_to_metric_families(text) if f.name.startswith("forebay_")]
    samples = {
        (s.name, frozenset(s.labels.items())): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_bucket")
    }
    return Process(url, ready, samples, frozenset(family.name for family in families))


class Pace:
    """Counters of the same processes at two moments."""

    def __init__(self, before: Iterable[Process], after: Iterable[Process], elapsed: float) -> None:
        then = {process.address: process for process in before}
        self._pairs = [(then[p.address], p) for p in after if p.address in then]
        self._elapsed = elapsed

    def per_second(self, name: str, queue: str, outcomes: Sequence[str]) -> float | None:
        """How fast these outcomes of a queue went up; None: nobody counts them."""
        pairs = [(was, now) for was, now in self._pairs if now.counts(name)]
        if not pairs:
            return None
        grown = 0.0
        for then, process in pairs:
            for outcome in outcomes:
                now = process.total(name, queue=queue, outcome=outcome) or 0.0
                was = then.total(name, queue=queue, outcome=outcome) or 0.0
                # Less than before: it was started anew and counts from zero.
                grown += now - was if now >= was else now
        return grown / self._elapsed
