"""
Keeps redirects from leading where nobody meant a request to go (server-side request forgery).

The configured URL is the operator's word: any address is fine. Where an answer says to
go instead is not: it is followed on the same host, or to a public address. The address
is judged at the moment when the connection is made to it, so a name that changes its
address in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from yarl import URL

from forebay.errors import SinkMisconfigured

FOLLOWED = frozenset({307, 308})
"""The redirects that keep method and body: after the others the message would be gone."""
MAX_REDIRECTS = 5

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_6TO4 = ipaddress.ip_network("2002::/16")


class NotPublic(Exception):
    """
    A connection to a private address was asked for by an answer.

    No OSError: the client would go on to the next address of the name, and say no more of this one.
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is no public address")
        self.address = address


def is_public(address: str) -> bool:
    """Whether `address` is one of the internet, and not of a network, a host or a purpose of its own."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        elif ip in _6TO4:
            inner = ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (
        ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
        or ip.is_unspecified
    )  # fmt: skip


def public_socket(addr_info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
    """
    A socket for the address that is about to be connected to.

    Raises:
        NotPublic
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(str(address[0])):
        raise NotPublic(str(address[0]))
    return socket.socket(family=family, type=kind, proto=protocol)


def next_url(current: URL, status: int, location: str | None, *, follow: bool, target: str) -> URL:
    """
    Where a redirect leads, if it may be followed.

    Raises:
        SinkMisconfigured: it may not, with what to write instead.
    """
    try:
        to = None if not location else current.join(URL(location))
    except ValueError:
        to = None
    if to is None or to.scheme not in ("http", "https") or not to.host:
        raise SinkMisconfigured(f"{target} answers {status} without saying where to; correct http.url")
    where = shown(to)
    if status not in FOLLOWED:
        raise SinkMisconfigured(
            f"{target} answers {status}, to {where}; that would drop the message's body: correct http.url"
        )
    if current.scheme == "https" and to.scheme == "http":
        raise SinkMisconfigured(
            f"{target} answers {status}, to {where}, which is not encrypted and so not followed"
        )
    if not follow:
        raise SinkMisconfigured(
            f"{target} answers {status}, to {where}; make that http.url, or set http.follow_redirects = true"
        )
    return to


def same_target(configured: URL, to: URL) -> bool:
    """The same host and port; or the same host, with encryption instead of without."""
    if configured.host != to.host:
        return False
    upgraded = configured.scheme == "http" and to.scheme == "https"
    return configured.port == to.port or (upgraded and configured.is_default_port() and to.is_default_port())


def shown(url: URL) -> str:
    """A URL without what may open doors: user, password, query."""
    return str(url.with_user(None).with_query(None).with_fragment(None))
