"""The configuration file: what an installation consists of, in TOML. docs/rolling.md has examples."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from forebay_rolling.errors import UsageError

Role = Literal["gateway", "consumer"]

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

T = TypeVar("T")


def checked_version(text: str) -> str:
    """
    The version, if it is one: letters, digits, dots, dashes, underscores; it becomes part of a path.

    Raises:
        UsageError: it is none.
    """
    if not _VERSION.fullmatch(text):
        raise UsageError(
            f"{text[:80]!r} is no version; a version is a letter or digit and then letters, digits, . _ -"
        )
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """How an instance is proven."""

    start_timeout: float = 60.0
    """Seconds until a new instance must be ready."""
    settle: float = 5.0
    """Seconds that it must then stay ready before it is trusted."""
    stop_timeout: float = 90.0
    """Seconds that a stop may take: more than drain_delay and shutdown_timeout of the settings."""
    canary_queue: str = "forebay-canary"
    """The queue of the canary message; the gateways must know it. Empty: no canary is sent."""
    canary_key_file: Path | None = None
    """
    A file with the API key of the canary, where the gateways want one; of a compose stack by its path in
    the gateways' containers: /run/forebay/api-key.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """The proxy in front of plain processes."""

    upstream: Path
    """The include of the upstream block; written by us."""
    pid: Path
    """nginx's pid file. A file `closing` is put beside it before a reload; docs/rolling.md says what for."""
    reload: tuple[str, ...] = ()
    """The command that makes nginx read it; by default SIGHUP to the pid."""
    server_options: str = "max_fails=0"
    """What stands behind each address in that file."""
    closing: float = 2.0
    """Seconds before a reload in which each answer is the last one of its connection."""
    let_go: float = 75.0
    """Seconds to wait for the end of workers with the old list: more than worker_shutdown_timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """A stack of docker compose."""

    project: Path
    """The folder of its docker-compose.yml."""
    command: tuple[str, ...] = ("docker", "compose")
    """Where options of every call go, too: ["docker", "compose", "--env-file", "deploy/kafka.env"]."""
    docker: str = "docker"
    image: str = "forebay:{version}"
    """The image of a version; one that is not on the host is pulled."""
    variable: str = "FOREBAY_IMAGE"
    """The variable of docker-compose.yml that names it."""
    upstream: str = "/etc/forebay-nginx/upstream"
    """The folder of watch-upstream in nginx's container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One installation on one host."""

    kind: Literal["processes", "compose"]
    directory: Path
    """State, lock, pid files and logs: of this installation alone, and on a local disk."""
    gateways: int = 2
    consumers: int = 2
    surge: Literal[0, 1] = 1
    """1: the new instance starts before an old one leaves; 0: after, for hosts without room for one more."""
    migrate: bool = True
    """Whether `forebay migrate` of the new version runs first."""
    checks: Checks = field(default_factory=Checks)
    # Of plain processes:
    command: tuple[str, ...] = ()
    """How a version is run, with {version} in it: ["/opt/forebay/{version}/bin/forebay"]."""
    gateway_ports: tuple[int, ...] = ()
    consumer_ports: tuple[int, ...] = ()
    """Loopback ports to take turns in, one more of each than instances."""
    journal: bool = False
    """Whether the gateways have a journal; a stop then waits until no messages of it are left alone."""
    environment: dict[str, str] = field(default_factory=dict)
    """All that the instances get, besides PATH, HOME and LANG."""
    working_directory: Path | None = None
    """Where they run; by default `directory`."""
    nginx: Nginx | None = None
    # Of a compose stack:
    compose: Compose | None = None

    def count(self, role: Role) -> int:
        return self.gateways if role == "gateway" else self.consumers

    def ports(self, role: Role) -> tuple[int, ...]:
        return self.gateway_ports if role == "gateway" else self.consumer_ports


def read_config(path: Path) -> Config:
    """
    Raises:
        UsageError: it cannot be read or says what cannot be; the text names the place.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; name the file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    try:
        config = _made(Config, table, "")
        _require(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return config


_NESTED: dict[str, Any] = {"checks": Checks, "nginx": Nginx, "compose": Compose}


def _made(kind: type[T], table: dict[str, Any], place: str) -> T:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"unknown setting {place}{name}; there are {', '.join(known)}")
        values[name] = _value(f"{place}{name}", str(known[name].type), value)
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{place or 'it'} is incomplete: {error}") from None


def _value(name: str, kind: str, value: Any) -> Any:
    section = _NESTED.get(name)
    if section is not None and isinstance(value, dict):
        return _made(section, value, f"{name}.")
    match kind, value:
        case ("Path" | "Path | None", str()):
            if not Path(value).is_absolute():
                raise UsageError(f"{name} is {value!r}; it must be an absolute path")
            return Path(value)
        case ("int", int()) if not isinstance(value, bool) and value >= 0:
            return value
        case ("float", int() | float()) if not isinstance(value, bool) and value >= 0:
            return float(value)
        case ("bool", bool()) | ("str", str()):
            return value
        case ("tuple[str, ...]", list()) if all(isinstance(v, str) for v in value):
            return tuple(value)
        case ("tuple[int, ...]", list()) if all(type(v) is int and 0 < v < 65_536 for v in value):
            return tuple(value)
        case ("dict[str, str]", dict()) if all(isinstance(v, str) for v in value.values()):
            return value
        case (_, _) if kind.startswith("Literal[") and repr(value) in kind[8:-1].split(", "):
            return value
    raise UsageError(f"{name} cannot be {value!r}; it is of the kind {kind}")


def _require(config: Config) -> None:
    if config.gateways < 1:
        raise UsageError("gateways must be at least 1")
    if config.kind == "compose":
        if config.compose is None:
            raise UsageError('kind = "compose" needs a table [compose] with `project`')
        return
    if not config.command:
        raise UsageError('command is missing; for example ["/opt/forebay/{version}/bin/forebay"]')
    if config.nginx is None:
        raise UsageError("a table [nginx] with `upstream` and `pid` is missing")
    for role, ports in (("gateway", config.gateway_ports), ("consumer", config.consumer_ports)):
        needed = config.count(role) + config.surge if config.count(role) else 0  # type: ignore[arg-type]
        if len(set(ports)) < needed:
            raise UsageError(f"{role}_ports has {len(set(ports))} ports; {needed} are needed")
    if set(config.gateway_ports) & set(config.consumer_ports):
        raise UsageError("gateway_ports and consumer_ports have a port in common")
