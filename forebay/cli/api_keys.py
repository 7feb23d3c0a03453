"""`forebay api-keys create`, `list` and `revoke`: the keys that the gateway asks for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import ConfigOption, JsonOption, load
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, emit_table, note, size
from forebay.cli._values import seconds
from forebay.errors import SettingsError
from forebay.section import parse_size

if TYPE_CHECKING:
    from gateway.keys_file import ApiKey

FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="The file of keys; gateway.keys_file otherwise.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.", show_default=False)]


def _bytes(text: str) -> int:
    try:
        return int(str(parse_size(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def create(
    name: NameArgument,
    queues: Annotated[
        str, typer.Option("--queues", metavar="NAMES", help='Queues it may use: "orders,clicks-*".')
    ] = "*",
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", help="Whose idempotency keys it sends; NAME if not given."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Messages per second at most.")] = None,
    burst: Annotated[int | None, typer.Option("--burst", help="Messages at once at most.")] = None,
    bytes_per_second: Annotated[
        int | None,
        typer.Option("--bytes-per-second", parser=_bytes, metavar="SIZE", help="Body bytes, such as 2MiB."),
    ] = None,
    max_body_bytes: Annotated[
        int | None,
        typer.Option("--max-body-bytes", parser=_bytes, metavar="SIZE", help="Its largest body."),
    ] = None,
    in_flight_share: Annotated[
        float | None, typer.Option("--in-flight-share", help="Of the requests in work, 0 to 1.")
    ] = None,
    journal_share: Annotated[
        float | None, typer.Option("--journal-share", help="Of the gateway's journal, 0 to 1.")
    ] = None,
    expires: Annotated[
        float | None,
        typer.Option("--expires", parser=seconds, metavar="DURATION", help="Worthless after, such as 90d."),
    ] = None,
    file: FileOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Make an API key and print it, this once: only its hash is kept.

    Examples:
      forebay api-keys create shop --queues orders --rate 200
      forebay api-keys create shop-2 --tenant shop --queues orders
      FOREBAY_API_KEY=$(forebay api-keys create ci --expires 1d) forebay send orders '{}'

    A running gateway takes it within two seconds. Rates and shares count per gateway
    process. To replace a key make a second one for the same --tenant, which goes on with
    the same idempotency keys, and revoke the first once nobody sends it any more.

    Exit codes: 0 made, 2 the file or a limit cannot be, 5 there is a key of this name.
    """
    from gateway.keys_file import changing, make

    path = _file(file, config)
    key, kept = make(
        name,
        tenant=tenant,
        queues=tuple(part.strip() for part in queues.split(",") if part.strip()),
        rate=rate,
        burst=burst,
        bytes_per_second=bytes_per_second,
        max_body_bytes=max_body_bytes,
        in_flight_share=in_flight_share,
        journal_share=journal_share,
        expires_at=None if expires is None else datetime.now(UTC) + timedelta(seconds=round(expires)),
    )
    with changing(path) as keys:
        if any(other.name == name for other in keys):
            raise CommandError(
                f"there is a key {name!r} in {path}; choose another name"
                f" (`--tenant {name}` makes it the same tenant), or revoke that one first",
                ExitCode.CONFLICT,
            )
        keys.append(kept)
    if as_json:
        emit_json({"key": key} | _document(kept))
    else:
        emit(key)
        where = "every queue" if kept.queues == ("*",) else ", ".join(kept.queues)
        note(f"{name} may send to {where}; keep the key: only its hash is in {path}")


def list_(file: FileOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """
    List the API keys: names and limits; the keys themselves are kept nowhere.

    Examples:
      forebay api-keys list
      forebay api-keys list --file /etc/forebay/keys.json --json
    """
    from gateway.keys_file import read

    path = _file(file, config)
    keys = read(path).keys
    if as_json:
        emit_json([_document(key) for key in keys])
        return
    if not keys:
        note(f"no API key is in {path}; `forebay api-keys create NAME` makes one")
        return
    now = datetime.now(UTC)
    emit_table(
        ("NAME", "TENANT", "QUEUES", "LIMITS", "CREATED", "EXPIRES"),
        [
            (
                key.name, key.whose, ",".join(key.queues), _limits(key), _day(key.created_at),
                "expired" if key.expired(now) else _day(key.expires_at),
            )
            for key in keys
        ],
    )  # fmt: skip


def revoke(name: NameArgument, file: FileOption = None, config: ConfigOption = None) -> None:
    """
    Make an API key worthless: requests with it are answered 401 within two seconds.

    Examples:
      forebay api-keys revoke shop

    What was accepted with it stays. Exit codes: 0 revoked, 4 there is no such key.
    """
    from gateway.keys_file import changing

    path = _file(file, config)
    with changing(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise CommandError(
                f"there is no key {name!r} in {path}; `forebay api-keys list` names them", ExitCode.NOT_FOUND
            )
        keys[:] = left
    note(f"{name} is revoked")


def _file(given: Path | None, config: Path | None) -> Path:
    if given is not None:
        return given
    path = load(config).settings.gateway.keys_file
    if path is None:
        raise SettingsError(
            "which file of API keys? Any one of these says:\n"
            "  --file keys.json\n"
            "  export FOREBAY_GATEWAY__KEYS_FILE=keys.json\n"
            '  gateway.keys_file = "keys.json"     # in forebay.toml\n'
            "The gateway needs one of the last two."
        )
    return path


def _document(key: ApiKey) -> dict[str, object]:
    document: dict[str, object] = key.model_dump(mode="json", exclude_none=True, exclude={"sha256"})
    return document | {"tenant": key.whose}


def _limits(key: ApiKey) -> str | None:
    said = []
    if key.rate is not None:
        said.append(f"{key.rate:g}/s" + (f" (burst {key.burst})" if key.burst else ""))
    if key.bytes_per_second is not None:
        said.append(f"{size(key.bytes_per_second)}/s")
    if key.max_body_bytes is not None:
        said.append(f"bodies to {size(key.max_body_bytes)}")
    if key.in_flight_share is not None:
        said.append(f"{key.in_flight_share:.0%} in flight")
    if key.journal_share is not None:
        said.append(f"{key.journal_share:.0%} of the journal")
    return ", ".join(said) or None


def _day(when: datetime | None) -> str | None:
    return None if when is None else f"{when.astimezone(UTC):%Y-%m-%d}"
