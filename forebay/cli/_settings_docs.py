"""What is written about the settings, made of the settings themselves: reference and starter file."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic.fields import FieldInfo

from forebay.settings import Settings
from forebay.settings_schema import (
    as_written,
    fields,
    is_given,
    named,
    section_of,
    toml_value,
    type_in_words,
)
from forebay.settings_sources import SettingPath, dotted, variable

_INTRO = """\
# Settings

<!-- Made of the docstrings of the settings by `forebay config docs > docs/configuration.md`. -->

Every setting can be given in four places; the first that says something wins:

1. a flag, where the command has one (`--port`);
2. an environment variable, `FOREBAY_` and the path with `__` between its parts: `FOREBAY_GATEWAY__PORT=8081`.
   In the name of a queue an underscore stands for a hyphen. An empty variable is the same as none;
3. a secret file: `FOREBAY_DATABASE__URL_FILE=/run/secrets/url` reads the value from that file;
4. the settings file: `--config FILE`, else `$FOREBAY_CONFIG`, else `./forebay.toml`.

`forebay config show` prints every value in force with the place it came from, credentials masked. `forebay
config check` exits 2 and names the line if something is wrong. An unknown name is an error, never ignored.

Durations are seconds, or text: `"250ms"`, `"30s"`, `"15m"`, `"2h"`, `"14d"`. Sizes are bytes, or text:
`"900kB"`, `"64MiB"`. Relative paths, also those in SQLite URLs, are relative to the file that sets them; in
flags and variables, to the current folder.

Only `forebay dev` has default URLs (`forebay-data/queue.db` and `forebay-data/forebay.db`).
"""


def reference() -> str:
    """docs/configuration.md."""
    parts = [_INTRO]
    for table, rows in _tables():
        section = section_of(Settings, table)
        title = f"`[{dotted(table)}]`" if table else "Top level"
        parts.append(f"\n## {title}\n")
        if table and section is not None and section.__doc__:
            parts.append(_paragraph(section.__doc__))
        parts.append("| setting | type | default | meaning |\n|---|---|---|---|")
        parts += [_row(path, field) for path, field in rows]
        example = variable(named(rows[0][0], _example_name(table), "carrier"))
        parts.append(f"\nAs a variable: `{example}`.")
    return "\n".join(parts) + "\n"


def _tables() -> list[tuple[SettingPath, list[tuple[SettingPath, FieldInfo]]]]:
    tables: dict[SettingPath, list[tuple[SettingPath, FieldInfo]]] = {}
    for path, field in fields(Settings):
        # The defaults have the fields of a queue; one table for both is enough.
        if path[0] != "queue_defaults":
            tables.setdefault(path[:-1], []).append((path, field))
    return list(tables.items())


def _example_name(table: SettingPath) -> str:
    """What stands for the name of one of many: queues, sources, targets, and holders of tokens."""
    examples = {"queues": "orders", "sources": "shop", "forward": "billing"}
    return examples.get(table[0] if table else "", "ann")


def _row(path: SettingPath, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "–" if not is_given(default) else f"`{as_written(field, default)}`"
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{path[-1]}` | {type_in_words(field)} | {shown} | {meaning} |"


def _paragraph(docstring: str) -> str:
    return " ".join(docstring.split()) + "\n"


def starter_file(queues: Iterable[str]) -> str:
    """
    A forebay.toml that changes nothing: every setting is there as a comment, with its default.

    `queues` are written out, so that the file declares what exists already.
    """
    lines = [
        "# Settings of Forebay. A line that starts with # shows a default; remove the # to change it.",
        "# Flags and FOREBAY_* variables win over this file. Check it with: forebay config check",
    ]
    names = list(queues)
    lines += [
        "",
        "# The queues that exist. Each may have a table of its own, [queues.NAME].",
    ]
    lines.append(f"queue_names = {toml_value(names)}" if names else '#queue_names = ["orders", "clicks"]')
    for table, rows in _tables():
        # A table belongs to one queue; a source or a target needs more than there are defaults for.
        if not table or "table" in table or table[0] in ("sources", "forward"):
            continue
        name = named(table, _example_name(table), "")
        if table[0] == "queues":
            name = ("queue_defaults", *table[2:])
        section = section_of(Settings, table)
        lines += [
            "",
            f"# {_paragraph((section.__doc__ or '') if section else '').strip()}",
            f"[{dotted(name)}]",
        ]
        lines += [text for path, field in rows for text in _commented(path, field)]
    lines += [
        "",
        "# Services whose webhooks are taken: POST /v1/sources/shop. See docs/webhooks.md.",
        "#[sources.shop]",
        '#scheme = "standard"',
        '#queue = "orders"',
        '#secrets = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]',
        "",
        "# Services whose requests are kept first: POST /v1/forward/billing/... See docs/forwarding.md.",
        "#[forward.billing]",
        '#url = "https://billing.internal/api"',
    ]
    for name_ in names:
        lines += ["", f"[queues.{name_}]", '#handler = "shop.orders:handle"', "#retry.max_attempts = 12"]
    return "\n".join(lines) + "\n"


def _commented(path: SettingPath, field: FieldInfo) -> list[str]:
    default = field.get_default(call_default_factory=True)
    text = " ".join((field.description or "").split())
    return [f"# {text}", f"#{path[-1]} = {as_written(field, default if is_given(default) else '')}"]
