"""
The settings of a whole installation: one frozen tree, read once, strict about names.

Order, the first that says something wins: flag > FOREBAY_* variable (`__` nests) > the
file named by a FOREBAY_*_FILE variable > settings file (--config, $FOREBAY_CONFIG,
./forebay.toml) > default. `[queue_defaults]` stands below every `[queues.<name>]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field, ValidationError

from consumers.settings import ConsumerSettings, QueueSettings
from consumers.sinks.settings import TargetSettings
from forebay.admin.settings import AdminSettings
from forebay.brokers.naming import check_queue_name
from forebay.brokers.settings import BrokerSettings
from forebay.errors import SettingsError
from forebay.section import Section
from forebay.settings_forward import queues_of_targets, with_targets
from forebay.settings_schema import (
    example,
    is_path,
    is_secret,
    is_setting,
    kind_of,
    leaf_settings,
    suggestion,
    toml_value,
)
from forebay.settings_sources import Assignment, SettingPath, dotted, from_environment, from_toml, unreadable
from forebay.storage.settings import DatabaseSettings
from gateway.settings import GatewaySettings
from gateway.sources.settings import SourceName, SourceSettings

DEFAULT_FILE = "forebay.toml"

_COMMA_BEFORE_URL = re.compile(r"[,\s](?=\s*[A-Za-z][A-Za-z0-9+.-]*://)")
"""Within a URL commas separate hosts; this one, or a line's end in a secret file, separates URLs."""

_HANDLER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class StatusSettings(Section):
    """Whom `forebay status` asks, besides the broker and the database."""

    gateways: tuple[str, ...] = ()
    """The gateways, as URLs: "http://gateway:8080"; at a name with several addresses each is asked. None:
    the one that these settings would start, if it answers."""
    consumers: tuple[str, ...] = ()
    """The same for the consumers' health port. None: that of these settings, consumer.health_port."""


class Settings(Section):
    """Everything that can be set. Each process reads the parts that it needs."""

    queue_names: tuple[str, ...] = ()
    """Queues that exist with the defaults: "orders,clicks", or a list in TOML."""
    queue_defaults: QueueSettings = QueueSettings()
    """What every queue starts from."""
    queues: dict[str, QueueSettings] = Field(default_factory=dict)
    """One table per queue, `[queues.orders]`. Once loaded, those of `queue_names` are in it too."""
    forward: dict[str, TargetSettings] = Field(default_factory=dict)
    """Services whose requests are kept first, one table each, `[forward.billing]`."""
    broker: BrokerSettings = BrokerSettings()
    """Where messages wait."""
    database: DatabaseSettings = DatabaseSettings()
    """Where messages end up."""
    gateway: GatewaySettings = GatewaySettings()
    """The HTTP side."""
    sources: dict[SourceName, SourceSettings] = Field(default_factory=dict)
    """Services whose webhooks are taken, one table each, `[sources.shop]`."""
    consumer: ConsumerSettings = ConsumerSettings()
    """The consumers of one process."""
    admin: AdminSettings = AdminSettings()
    """The API for operators."""
    status: StatusSettings = StatusSettings()
    """Whom `forebay status` asks."""

    def queue(self, name: str) -> QueueSettings:
        """The settings of one queue; of a queue that is not named anywhere, the defaults."""
        return self.queues.get(name, self.queue_defaults)


@dataclass(frozen=True, slots=True)
class Flag:
    """A setting given on the command line. `value` None: not given."""

    setting: str
    """Dotted: "gateway.port"."""
    flag: str
    """As the user types it: "--port"."""
    value: object


@dataclass(frozen=True, slots=True)
class Loaded:
    settings: Settings
    provenance: Mapping[str, str]
    """Where each value that is not a default came from, by the setting's dotted name."""
    file: Path | None
    """The settings file, if there is one."""


def load(
    config: Path | None = None,
    flags: Iterable[Flag] = (),
    *,
    fallbacks: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Loaded:
    """
    Read all sources into one tree.

    `fallbacks` are a command's own defaults, by dotted name: weaker than any source.

    Raises:
        SettingsError: one line per setting that is wrong, each with its place.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    file = find_file(config, environ, cwd)
    own = [_fallback(name, value, cwd) for name, value in (fallbacks or {}).items()]
    from_file = from_toml(file) if file else []
    from_env = from_environment(environ, _file_settings(), cwd)
    from_flags = [_of_flag(flag, cwd) for flag in flags if flag.value is not None]

    assignments = [_in_full(a) for a in (*own, *from_file, *from_env, *from_flags)]
    _refuse_unknown(assignments)
    values = {a.path: a for a in assignments}
    _apply_queue_defaults(values)
    settings = _build(values)
    queues, origins = with_targets(settings.queues, settings.forward, assignments)
    settings = settings.model_copy(update={"queues": queues})
    return Loaded(settings, {dotted(p): a.origin for p, a in values.items()} | origins, file)


def find_file(config: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The settings file in use. One that somebody named must exist."""
    named = config or (Path(environ["FOREBAY_CONFIG"]) if environ.get("FOREBAY_CONFIG") else None)
    file = cwd / (named or DEFAULT_FILE)
    try:
        if file.is_file():
            return file
    except OSError as error:  # a folder above it that may not be entered, say
        raise unreadable(file, error) from error
    if named is None:
        return None
    by = "--config" if config else "FOREBAY_CONFIG"
    raise SettingsError(f"{by} names {file}, which is not there; `forebay config init` writes a new one")


def _fallback(name: str, value: object, cwd: Path) -> Assignment:
    return Assignment(
        path=tuple(name.split(".")), value=value, origin="default of this command", written=name, base=cwd
    )


def _of_flag(flag: Flag, cwd: Path) -> Assignment:
    path = tuple(flag.setting.split("."))
    return Assignment(path=path, value=flag.value, origin=f"flag {flag.flag}", written=flag.flag, base=cwd)


def _file_settings() -> frozenset[str]:
    """The settings that are themselves called something_file, such as gateway.keys_file."""
    return frozenset(dotted(path) for path in leaf_settings(Settings) if path[-1].endswith("_file"))


def _in_full(a: Assignment) -> Assignment:
    """`carrier = "/carrier"` of a mapped table in its long form, `carrier.from = "/carrier"`."""
    if a.path[0] == "queues" and a.path[2:4] == ("table", "columns") and len(a.path) == 5 and a.value != {}:
        if not isinstance(a.value, str):
            raise SettingsError(
                f'{a.origin}: {a.written} must be a source such as "/{a.path[4]}", or for a constant'
                f" {{ value = {toml_value(a.value)} }}"
            )
        return replace(a, path=(*a.path, "from"))
    return a


# ---- names


def _refuse_unknown(assignments: Iterable[Assignment]) -> None:
    wrong: list[str] = []
    for a in assignments:
        kind = kind_of(Settings, a.path)
        if kind == "setting" or (kind == "table" and a.value == {}):
            continue
        # A variable names itself; a key of a file needs the place.
        where = a.written if a.written in a.origin else f"{a.origin}: {a.written}"
        if kind == "table":
            wrong.append(f"{where} is a table of settings, not a value")
        else:
            wrong.append(f"unknown setting {where}{suggestion(Settings, a)}")
    _raise(wrong)
    for a in assignments:
        if a.path[:2] == ("queue_defaults", "table"):
            raise SettingsError(
                f"{a.origin}: {a.written}: a table belongs to one queue; write [queues.orders.table]"
            )
        if a.path[0] in ("queues", "forward") and len(a.path) > 1:
            _checked_name(a.path[1], a)


def _checked_name(name: str, a: Assignment) -> str:
    try:
        return check_queue_name(name)
    except SettingsError as error:
        raise SettingsError(f"{error} ({a.origin})") from None


# ---- queues


def _queue_names(values: Mapping[SettingPath, Assignment]) -> list[str]:
    """Every queue that is named, in `queue_names` or by a table of its own."""
    names: list[str] = []
    if (given := values.get(("queue_names",))) is not None:
        if not isinstance(given.value, (str, list, tuple)) or not all(
            isinstance(n, str) for n in given.value
        ):
            raise SettingsError(f'{given.origin}: queue_names must be names; queue_names = "orders,clicks"')
        texts = given.value.split(",") if isinstance(given.value, str) else given.value
        names = [_checked_name(text.strip(), given) for text in texts if text.strip()]
    names += [path[1] for path in values if path[0] == "queues" and len(path) > 1]
    names += [_checked_name(name, a) for name, a in queues_of_targets(values).items()]
    return list(dict.fromkeys(names))


def _apply_queue_defaults(values: dict[SettingPath, Assignment]) -> None:
    """Complete each queue with what `[queue_defaults]` says and it does not."""
    names = _queue_names(values)
    defaults = {path[1:]: a for path, a in values.items() if path[0] == "queue_defaults" and len(path) > 1}
    _imply_from_targets(defaults)
    _imply_python(defaults, {})
    for name in names:
        own = {path[2:]: a for path, a in values.items() if path[:2] == ("queues", name) and len(path) > 2}
        _imply_from_targets(own)
        _imply_table(name, own)
        _imply_python(own, defaults)
        for path, a in (defaults | own).items():
            values["queues", name, *path] = a
    for path, a in defaults.items():
        values["queue_defaults", *path] = a
    # The tables themselves are no values, and every queue has one now.
    for path in [p for p, a in values.items() if a.value == {}]:
        del values[path]
    for name in names:
        if not any(path[:2] == ("queues", name) for path in values):
            values["queues", name] = Assignment(
                path=("queues", name), value={}, origin="queue_names", written=name, base=Path()
            )


def _imply_table(queue: str, own: dict[SettingPath, Assignment]) -> None:
    """A mapped table needs no `sink = "table"` beside it."""
    table = next((a for path, a in own.items() if path[0] == "table"), None)
    sink = own.get(("sink",))
    if table is None:
        if sink is not None and sink.value == "table":
            raise SettingsError(
                f'{sink.origin}: sink = "table" needs a table; write [queues.{queue}.table] with its name'
                f" and [queues.{queue}.table.columns]"
            )
        return
    if sink is not None and sink.value != "table":
        raise SettingsError(
            f'{table.origin}: a mapped table needs sink = "table", but {sink.origin} sets'
            f" sink = {sink.value!r}; remove one of the two"
        )
    if table.value == {} and all(path == ("table",) for path in own if path[0] == "table"):
        raise SettingsError(f'{table.origin}: {table.written} is empty; it needs name = "…" and columns')
    own[("sink",)] = Assignment(
        path=("sink",), value="table", origin=f"implied by the table, {table.origin}",
        written="sink", base=table.base,
    )  # fmt: skip


_TARGETS: dict[SettingPath, str] = {("http", "url"): "http", ("forward", "queue"): "broker"}
"""Settings that name where messages go, and so the sink: no `sink = "…"` is needed beside them."""


def _imply_from_targets(own: dict[SettingPath, Assignment]) -> None:
    for path, implied in _TARGETS.items():
        if (one := own.get(path)) is None:
            continue
        sink = own.get(("sink",), own.get(("handler",)))
        if sink is not None and sink.value != implied:
            raise SettingsError(
                f"{one.origin}: {one.written} needs sink = {implied!r}, but {sink.origin} sets"
                f" {sink.path[-1]} = {sink.value!r}; remove one of the two"
            )
        own[("sink",)] = Assignment(
            path=("sink",), value=implied, origin=f"implied by {dotted(path)}, {one.origin}",
            written="sink", base=one.base,
        )  # fmt: skip


def _imply_python(own: dict[SettingPath, Assignment], defaults: Mapping[SettingPath, Assignment]) -> None:
    """A handler needs no `sink = "python"` beside it; a queue with another sink drops a default handler."""
    handler, sink = own.get(("handler",)), own.get(("sink",))
    if handler is not None:
        if sink is not None and sink.value != "python":
            raise SettingsError(
                f'{handler.origin}: a handler needs sink = "python", but {sink.origin} sets'
                f" sink = {sink.value!r}; remove one of the two"
            )
        if not isinstance(handler.value, str) or not _HANDLER.fullmatch(handler.value):
            raise SettingsError(
                f'{handler.origin}: handler {handler.value!r} is not "package.module:function";'
                ' handler = "shop.orders:handle"'
            )
        own[("sink",)] = Assignment(
            path=("sink",), value="python", origin=f"implied by the handler, {handler.origin}",
            written="sink", base=handler.base,
        )  # fmt: skip
    elif sink is not None and sink.value == "python" and ("handler",) not in defaults:
        raise SettingsError(f'{sink.origin}: sink = "python" needs a handler; handler = "shop.orders:handle"')
    elif sink is not None and ("handler",) in defaults and sink.value != "python":
        own[("handler",)] = Assignment(
            path=("handler",), value=None, origin=sink.origin, written="handler", base=sink.base
        )


# ---- values


def _build(values: Mapping[SettingPath, Assignment]) -> Settings:
    tree: dict[str, Any] = {}
    for path, a in values.items():
        table = tree
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = _value(path, a)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        wrong = [_line(e, values) for e in error.errors()]
    # Not while that error is handled: a traceback would quote its input, which may be a password.
    _raise(wrong)
    raise AssertionError("a ValidationError without errors")


def _value(path: SettingPath, a: Assignment) -> object:
    value = a.value
    if isinstance(value, str):
        if path[-1] in ("url", "broker_url"):
            return _absolute_url(value.strip(), a.base)
        if is_path(Settings, path):
            return a.base / value
        if is_setting(Settings, path, tuple):
            value = _COMMA_BEFORE_URL.split(value) if is_secret(Settings, path) else value.split(",")
            value = tuple(text.strip() for text in value if text.strip())
    if is_secret(Settings, path) and isinstance(value, (list, tuple)):
        return tuple(_absolute_url(v.strip(), a.base) if isinstance(v, str) else v for v in value)
    return value


def _absolute_url(url: str, base: Path) -> str:
    """`url`, with the path of a relative SQLite URL (three slashes) taken from `base`."""
    m = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/?][^?]*)(\?.*)?", url)
    if m is None or m[2].startswith(":memory:"):
        return url
    # The path in the URL is percent-encoded already, the folder's is not.
    return f"{m[1]}{quote(str(base))}/{m[2]}{m[3] or ''}"


def _line(error: Any, values: Mapping[SettingPath, Assignment]) -> str:
    path: SettingPath = tuple(str(part) for part in error["loc"])
    a = values.get(path) or values.get(path[:-1])
    # A table as a whole: settings in it that contradict each other. One of them was set by somebody.
    inside = a or next((v for p, v in values.items() if p[: len(path)] == path), None)
    if inside is None and error["type"] == "missing":
        inside = next((v for p, v in values.items() if p[: len(path) - 1] == path[:-1]), None)
    origin = inside.origin if inside else "default"
    if kind_of(Settings, path) == "table" and error["type"] == "value_error":
        return f"{origin}: {dotted(path)}: {error['ctx']['error']}"
    what = _what(error, "" if is_secret(Settings, path) else f"{error['input']!r} ")
    return f"{origin}: {dotted(path)} {what}{example(Settings, path)}"


def _what(error: Any, given: str) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    bounds = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
    if kind == "missing":
        return "is missing"
    if kind in bounds:
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}[bounds[kind]]
        return f"must be {words} {context[bounds[kind]]}, not {given.strip()}"
    if kind.startswith("int"):
        return f"must be a whole number, not {given.strip()}"
    if kind.startswith("float"):
        return f"must be a number, not {given.strip()}"
    if kind.startswith("bool"):
        return f"must be true or false, not {given.strip()}"
    if kind == "literal_error":
        return f"must be {context['expected']}, not {given.strip()}"
    if kind == "value_error":
        return f"is wrong: {context['error']}"
    return f"{given}is wrong: {error['msg']}"


def _raise(lines: list[str]) -> None:
    if len(lines) == 1:
        raise SettingsError(lines[0])
    if lines:
        raise SettingsError(
            "\n".join([f"{len(lines)} settings are wrong:", *(f"  {line}" for line in lines)])
        )
