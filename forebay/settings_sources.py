"""
Where values of settings come from: flags, environment, secret files, a TOML file.

Each source is read into the same flat form, one Assignment per value, so that one
place can merge them, say where a value came from, and name the place that is wrong.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from forebay.errors import SettingsError

PREFIX = "FOREBAY_"

RESERVED = frozenset({"FOREBAY_CONFIG", "FOREBAY_URL", "FOREBAY_API_KEY", "FOREBAY_OPERATOR"})
"""Variables of ours that are not settings."""

# Kubernetes sets these in every container beside a Service whose name starts with "forebay".
_SERVICE_LINK = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")

SettingPath = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One value, as one source gives it."""

    path: SettingPath
    value: object
    origin: str
    """For people: "flag --port", "environment FOREBAY_GATEWAY__PORT", "/etc/forebay.toml:12"."""
    written: str
    """The setting's name as that source spells it, to repeat in an error."""
    base: Path
    """What relative paths in the value are relative to."""


def dotted(path: SettingPath) -> str:
    return ".".join(path)


def variable(path: SettingPath) -> str:
    """The environment variable of a setting; queue names have no underscore, so theirs stand for hyphens."""
    return PREFIX + "__".join(path).replace("-", "_").upper()


def from_toml(file: Path) -> list[Assignment]:
    """
    The values in a TOML file.

    Raises:
        SettingsError: it cannot be read or is not TOML, with line and column.
    """
    try:
        text = file.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{file}:{place[1]}:{place[2]}" if place else str(file)
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise SettingsError(f"{where}: not TOML: {what}") from error
    places = _places(text)
    base = file.resolve().parent
    return [
        Assignment(path=path, value=value, origin=_place(file, places, path), written=dotted(path), base=base)
        for path, value in leaves(tree)
    ]


def unreadable(file: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the settings file {file} cannot be read: {error.strerror}; run the command as a user who may,"
        " or name another file with --config"
    )


def leaves(tree: Mapping[str, object], above: SettingPath = ()) -> Iterator[tuple[SettingPath, object]]:
    """The values of a tree with their paths. An empty table is a value, so that it is not overlooked."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


_HEADER = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def _places(text: str) -> dict[SettingPath, tuple[int, int]]:
    """
    Line and column of each key, found by eye rather than by grammar.

    The library tells no positions. A line inside a multi-line string may be taken for
    a key; then a place is added that nobody asks for.
    """
    places: dict[SettingPath, tuple[int, int]] = {}
    table: SettingPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _names(header[1])
            places.setdefault(table, (number, header.start(1) + 1))
        elif key := _KEY.match(line):
            places.setdefault(table + _names(key[1]), (number, key.start(1) + 1))
    return places


def _names(text: str) -> SettingPath:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _place(file: Path, places: Mapping[SettingPath, tuple[int, int]], path: SettingPath) -> str:
    # Inside an inline table only the place of the table is known.
    for end in range(len(path), 0, -1):
        if path[:end] in places:
            line, column = places[path[:end]]
            return f"{file}:{line}:{column}"
    return str(file)


def from_environment(environ: Mapping[str, str], known: frozenset[str], cwd: Path) -> list[Assignment]:
    """
    The values of FOREBAY_* variables, the weaker *_FILE ones first.

    `known` holds the settings whose own name ends in `_file`, dotted: they are not
    secret files. An empty variable is the same as none: compose files and charts
    write `${NAME:-}`.

    Raises:
        SettingsError: a secret file cannot be read.
    """
    plain: list[Assignment] = []
    secret: list[Assignment] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in RESERVED or not text or _service_link(name, text):
            continue
        path = _path_of(name)
        if not name.endswith("_FILE") or dotted(path) in known:
            plain += _of_variable(name, path, text, f"environment {name}", cwd)
        else:
            path = _path_of(name.removesuffix("_FILE"))
            secret += _of_variable(name, path, _secret(name, text), f"file {text} ({name})", cwd)
    return secret + plain


def _service_link(name: str, text: str) -> bool:
    return "__" not in name and bool(_SERVICE_LINK.search(name) or _SERVICE_URL.match(text))


def _path_of(name: str) -> SettingPath:
    parts = tuple(name.removeprefix(PREFIX).lower().split("__"))
    if parts[0] in ("queues", "sources", "forward") and len(parts) > 1:
        # FOREBAY_QUEUES__BIG_ORDERS__SINK: a shell cannot write a hyphen, these names have no underscore.
        parts = (parts[0], parts[1].replace("_", "-"), *parts[2:])
    return parts


def _of_variable(name: str, path: SettingPath, text: str, origin: str, cwd: Path) -> list[Assignment]:
    value: object = text
    if text.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(text)
        except ValueError:
            # An IPv6 host starts with a bracket too; the setting itself will judge the text.
            value = text
    found = list(leaves(value, path)) if isinstance(value, dict) and value else [(path, value)]
    return [Assignment(path=p, value=v, origin=origin, written=name, base=cwd) for p, v in found]


def _secret(name: str, file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name}={file}: cannot be read: {reason}") from error
    if not text:
        raise SettingsError(f"{name}={file}: the file is empty")
    return text
