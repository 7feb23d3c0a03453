"""`forebay config init|show|check|docs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import ConfigOption, JsonOption, load, load_to_read, run, unknown_sink, usable
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, emit_table, note
from forebay.errors import SettingsError

if TYPE_CHECKING:
    from forebay.settings import Loaded


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("forebay.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """
    Write a settings file with comments, and a table for each queue seen so far.

    Examples:
      forebay config init
      forebay config init /etc/forebay.toml

    The queues are those of `forebay dev`'s embedded queue in ./forebay-data, or of
    the broker that the settings name.
    """
    from forebay.cli._settings_docs import starter_file

    if file.exists() and not force:
        raise CommandError(
            f"{file} is there already; --force replaces it, or name another file", ExitCode.CONFLICT
        )
    queues = run(_queues_seen())
    with usable("make its folder first, or name a file in one that may be written"):
        file.write_text(starter_file(queues), encoding="utf-8")
    note(f"wrote {file}" + (f" with the queues {', '.join(queues)}" if queues else ""))


async def _queues_seen() -> list[str]:
    """The names that exist on the broker; none if there is no broker to ask."""
    from forebay.cli._common import open_broker
    from forebay.errors import ForebayError

    settings = load_to_read(None).settings
    names = list(settings.queues)
    try:
        if settings.broker.url is not None:
            async with open_broker(settings.broker) as broker:
                names += await broker.declared_queues() or []
    except ForebayError as error:
        # A settings file is most wanted when nothing runs yet.
        note(f"(queues of the broker not included: {error})")
    return list(dict.fromkeys(names))


def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """
    Show every setting, its value and where that came from. Credentials are masked.

    Examples:
      forebay config show
      forebay config show --json
    """
    loaded = load_to_read(config)
    rows = _rows(loaded)
    if as_json:
        emit_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    from forebay.settings import Settings
    from forebay.settings_schema import as_written, field_of

    note(f"settings file: {loaded.file or 'none'}")
    emit_table(
        ("setting", "value", "from"),
        [
            (name, None if value is None else as_written(field_of(Settings, name), value), origin)
            for name, value, origin in rows
        ],
    )


def _rows(loaded: Loaded) -> list[tuple[str, object, str]]:
    from forebay.settings_schema import shown_leaves

    found = shown_leaves(loaded.settings)
    return [(name, value, loaded.provenance.get(name, "default")) for name, value in found]


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """
    Check the settings; exit 2 and name file, line and column of what is wrong.

    Examples:
      forebay config check
      forebay config check --config /etc/forebay.toml
      forebay config check --json

    With --json what is wrong is on stdout too: {"verdict": "fail", "error": "…"}.
    """
    try:
        loaded = _checked(config)
    except SettingsError as error:
        if as_json:
            emit_json({"verdict": "fail", "error": str(error)})
        raise
    names = list(loaded.settings.queues)
    if as_json:
        emit_json({"verdict": "ok", "file": loaded.file, "queues": names})
        return
    note(f"{loaded.file or 'settings'}: ok, {len(names)} queue{'' if len(names) == 1 else 's'}")


def _checked(config: Path | None) -> Loaded:
    """
    Raises:
        SettingsError
    """
    from forebay.wiring import make_schemas, old_brokers

    loaded = load(config)
    old_brokers(loaded.settings.broker)
    make_schemas(loaded.settings)
    for name, source in loaded.settings.sources.items():
        if source.queue not in loaded.settings.queues:
            origin = loaded.provenance.get(f"sources.{name}.queue", "default")
            raise SettingsError(
                f"{origin}: sources.{name}.queue {source.queue!r} is not declared; name it in queue_names"
            )
    for name, queue in loaded.settings.queues.items():
        if (wrong := unknown_sink(queue.sink)) is not None:
            origin = loaded.provenance.get(f"queues.{name}.sink", "default")
            raise SettingsError(f"{origin}: queues.{name}.{wrong}")
    return loaded


def docs() -> None:
    """
    Print the reference of all settings as Markdown (docs/configuration.md).

    Examples:
      forebay config docs > docs/configuration.md
    """
    from forebay.cli._settings_docs import reference

    emit(reference().rstrip("\n"))
