"""Questions about a tree of settings sections: what is there, what was meant, how is it shown."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from forebay.section import Password
from forebay.settings_sources import Assignment, SettingPath, dotted, variable

Root = type[BaseModel]

ANY_QUEUE = "<name>"
"""Stands for the name of a queue in the list of all settings."""


def leaf_settings(model: Root, above: SettingPath = ()) -> Iterator[SettingPath]:
    """Every setting, in the order of declaration."""
    for path, _field in fields(model, above):
        yield path


def fields(model: Root, above: SettingPath = ()) -> Iterator[tuple[SettingPath, FieldInfo]]:
    for name, field in names_of(model).items():
        section, by_name = _section(field)
        if section is None:
            yield (*above, name), field
        else:
            yield from fields(section, (*above, name, ANY_QUEUE) if by_name else (*above, name))


def names_of(section: Root) -> dict[str, FieldInfo]:
    """The fields of a section as the user writes them: `from` is no name in Python."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section(field: FieldInfo) -> tuple[Root | None, bool]:
    """The section that a field holds, perhaps, and whether it holds many by name."""
    kind = field.annotation
    sections = [k for k in _alternatives(kind) if isinstance(k, type) and issubclass(k, BaseModel)]
    if sections:
        return sections[0], False
    if get_origin(kind) is dict:
        return get_args(kind)[1], True
    return None, False


def kind_of(model: Root, path: SettingPath) -> Literal["setting", "table", "unknown"]:
    """What `path` names."""
    field, section = _find(model, path)
    if section is not None:
        return "table"
    return "setting" if field is not None else "unknown"


def _find(model: Root, path: SettingPath) -> tuple[FieldInfo | None, Root | None]:
    section: Root | None = model
    field: FieldInfo | None = None
    rest = list(path)
    while rest:
        if section is None or rest[0] not in names_of(section):
            return None, None
        field = names_of(section)[rest.pop(0)]
        section, by_name = _section(field)
        if by_name and rest:
            rest.pop(0)
    return field, section


def section_of(model: Root, path: SettingPath) -> Root | None:
    """The section that `path` names; `<name>` or any other name stands for a queue."""
    return _find(model, path)[1] if path else model


def field_of(model: Root, name: str) -> FieldInfo | None:
    """The setting of this dotted name."""
    return _find(model, tuple(name.split(".")))[0]


def is_setting(model: Root, path: SettingPath, kind: type) -> bool:
    """Does `path` name a setting whose values are of this type (or None)?"""
    field, _ = _find(model, path)
    if field is None:
        return False
    return any((get_origin(k) or k) is kind for k in _alternatives(field.annotation))


def is_path(model: Root, path: SettingPath) -> bool:
    return is_setting(model, path, Path)


def is_secret(model: Root, path: SettingPath) -> bool:
    """Does `path` name a password, a URL that may hold one, a list of them, or one of such a list?"""
    for end in (len(path), len(path) - 1):
        field, _ = _find(model, path[:end]) if end else (None, None)
        if field is not None:
            kinds = _alternatives(field.annotation)
            inner = {i for kind in kinds for i in (kind, *get_args(kind))}
            return not inner.isdisjoint({SecretStr, Password})
    return False


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


# ---- suggestions


def named(path: SettingPath, queue: str, column: str) -> SettingPath:
    """`path` with names of the user's in the places that stand for them."""
    # Many by name are queues, sources of webhooks, targets, or the holders of tokens.
    own = {"admin": "ann", "sources": "shop", "forward": "billing"}.get(path[0])
    names = iter((own,) if own else (queue, column))
    return tuple(next(names) if part == ANY_QUEUE else part for part in path)


def suggestion(model: Root, a: Assignment) -> str:
    """What was probably meant by an unknown name, spelled as its source spells names."""
    env = a.written.isupper() and "." not in a.written
    queue = a.path[1] if a.path[0] == "queues" and len(a.path) > 1 else "orders"
    column = a.path[4] if a.path[2:4] == ("table", "columns") and len(a.path) > 4 else "name"
    paths = [named(p, queue, column) for p in leaf_settings(model)]
    if not env:
        paths += [p[:n] for p in list(paths) for n in range(1, len(p))]
    spell = variable if env else dotted
    names = {spell(path): path for path in paths}
    # The exact last part in another place is likelier than a similar name in the same place.
    same_leaf = [name for name, path in names.items() if path[-1] == a.path[-1]]
    # Without its table it may be meant in any of several.
    several = 2 if same_leaf and len(a.path) == 1 else 1
    close = difflib.get_close_matches(
        a.written, same_leaf or list(names), n=several, cutoff=0.4 if same_leaf else 0.7
    )
    if close:
        return f"; did you mean {' or '.join(sorted(close, reverse=True))}?"
    where = list(a.path[:-1])
    while where and kind_of(model, tuple(where)) != "table":
        where.pop()
    _, section = _find(model, tuple(where)) if where else (None, model)
    if section is None:
        return ""
    inside = f"in {dotted(tuple(where))} there are" if where else "there are"
    return f"; {inside} {', '.join(names_of(section))}"


def example(model: Root, path: SettingPath) -> str:
    """The setting with its default, as TOML, to show how one is written."""
    field, section = _find(model, path)
    if field is None or section is not None:
        return ""
    default = field.get_default(call_default_factory=True)
    return f"; for example: {dotted(path)} = {as_written(field, default)}" if is_given(default) else ""


def is_given(default: object) -> bool:
    """Is there a default at all."""
    return default is not None and default is not PydanticUndefined


# ---- showing values


def toml_value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    # A JSON string is a TOML basic string.
    return json.dumps(str(value), ensure_ascii=False)


_UNITS = (("d", 86_400.0), ("h", 3_600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001))
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("kB", 1_000))


def as_written(field: FieldInfo | None, value: object) -> str:
    """A value as a person would write it in TOML: "10m" for the duration 600."""
    kind = type_in_words(field) if field is not None else ""
    if kind == "duration" and isinstance(value, (int, float)):
        for unit, length in _UNITS:
            count = round(value / length)
            if count and abs(count * length - value) < 1e-9:
                return toml_value(f"{count}{unit}")
        return toml_value("0s") if value == 0 else toml_value(value)
    if kind == "size" and isinstance(value, int):
        for name, size in _SIZES:
            if value >= size and value % size == 0:
                return toml_value(f"{value // size}{name}")
    return toml_value(value)


def shown(value: object) -> object:
    """A value as it may be printed: credentials masked."""
    if isinstance(value, Password):
        return "***"
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value())
    if isinstance(value, tuple):
        return tuple(shown(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def shown_leaves(section: BaseModel, above: SettingPath = ()) -> Iterator[tuple[str, object]]:
    """Every value of a tree by its dotted name, as it may be printed."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = (*above, field.alias or name)
        if value is None and _section(field)[0] is not None:
            continue
        if isinstance(value, BaseModel):
            yield from shown_leaves(value, path)
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from shown_leaves(inner, (*path, key))
        else:
            yield dotted(path), shown(value)


def mask_url(url: str) -> str:
    """`url` without what opens doors: the password, and query parameters that sound like one."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return "***"
    # The last @ before the path ends the credentials: a password may hold one, wrongly unescaped.
    authority, slash, tail = rest.partition("/")
    if "@" in tail.partition("?")[0] and ":" in authority:
        # An unescaped slash in the password moved its end into what looks like the path.
        return f"{scheme}://***"
    user, at, host = authority.rpartition("@")
    if at:
        name, colon, _password = user.partition(":")
        authority = f"{name}:***@{host}" if colon else f"{name}@{host}"
    tail = re.sub(r"(?i)([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", r"\1***", tail)
    return f"{scheme}://{authority}{slash}{tail}"


def type_in_words(field: FieldInfo) -> str:
    """How a setting's values are written, for the reference."""
    metadata = [type(m).__name__ + getattr(getattr(m, "func", None), "__name__", "") for m in field.metadata]
    if any("parse_duration" in m for m in metadata):
        return "duration"
    if any("parse_size" in m for m in metadata):
        return "size"
    words: list[str] = []
    for kind in _alternatives(field.annotation):
        if kind is NoneType:
            continue
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            words.append(" or ".join(f'"{v}"' for v in get_args(kind)))
        else:
            if get_origin(kind) is tuple and SecretStr in get_args(kind):
                words.append("list of URLs")
                continue
            names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
            names |= {Password: "text", datetime: "date or time", date: "", time: ""}
            words.append(names.get(get_origin(kind) or kind, "list" if get_origin(kind) is tuple else "URL"))
    return ", ".join(filter(None, words))
