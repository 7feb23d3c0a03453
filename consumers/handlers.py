"""Your function: found by its name, understood by its signature, called with a message."""

from __future__ import annotations

import asyncio
import collections.abc
import difflib
import importlib
import inspect
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from forebay.errors import SettingsError
from forebay.message import Message

SHAPES = (
    "def handle(message: Message) -> None, def handle(message: Message, db: Connection) -> None,"
    " or with messages: list[Message] for whole batches"
)

_thread = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler function and how it wants to be called."""

    spec: str
    """As in the settings: "package.module:function"."""
    function: Callable[..., Any]
    takes_batch: bool
    takes_db: bool

    def call(self, messages: Sequence[Message], db: Connection | None) -> None:
        """
        Run the handler, here and now, on one message (or on a batch, if it takes batches).

        A coroutine is run to its end in an event loop of this thread's own, so that
        what a handler keeps open between calls (an HTTP session) stays usable.
        """
        argument: object = list(messages) if self.takes_batch else messages[0]
        try:
            result = self.function(argument, db) if self.takes_db else self.function(argument)
            if inspect.isawaitable(result):
                _run(result if inspect.iscoroutine(result) else _as_coroutine(result))
        except (SystemExit, asyncio.CancelledError) as error:
            # These would end the thread or the program, for one message's sake.
            raise RuntimeError(f"the handler ended with {type(error).__name__}") from error


def load_handler(spec: str) -> Handler:
    """
    The handler that `spec`, "package.module:function", names.

    The current folder is searched too, whether or not the command's own folder is.

    Raises:
        SettingsError: nothing there, or nothing that can be called with a message.
    """
    module_name, colon, path = spec.partition(":")
    if not (colon and path and module_name) or module_name.startswith("."):
        raise SettingsError(f'handler {spec!r} cannot be read; write "package.module:function"')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise SettingsError(
                f"handler {spec!r}: there is no module {error.name!r} in {here} nor among the installed"
                " packages; start forebay in the folder that holds it, or install it"
            ) from error
        raise SettingsError(
            f"handler {spec!r}: {module_name} imports {error.name!r}, which is not installed"
        ) from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        if isinstance(error, SyntaxError):
            place = ""  # Its text names the line; the last frame is the one that compiles.
        raise SettingsError(
            f"handler {spec!r}: importing {module_name} failed with {type(error).__name__}: {error}{place}"
        ) from error
    for name in path.split("."):
        if not hasattr(target, name):
            known = [n for n, value in vars(target).items() if callable(value) and not n.startswith("_")]
            near = difflib.get_close_matches(name, known, 1) if hasattr(target, "__dict__") else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"handler {spec!r}: {module_name} has no {name!r}{hint}")
        target = getattr(target, name)
    return as_handler(target, spec)


def as_handler(function: Callable[..., Any], spec: str | None = None) -> Handler:
    """
    How `function` wants to be called, by its signature.

    Raises:
        SettingsError: it cannot be called with a message.
    """
    spec = spec or f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', '?')}"
    if not callable(function):
        raise SettingsError(
            f"handler {spec!r} is a {type(function).__name__}, not a function; write {SHAPES}"
        )
    if inspect.isclass(function):
        raise SettingsError(f"handler {spec!r} is a class; name a function, or an object that can be called")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise SettingsError(f"handler {spec!r} has no readable signature; write {SHAPES}") from error
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    positional = [p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) != len(positional) or len(positional) not in (1, 2):
        names = ", ".join(p.name for p in needed)
        raise SettingsError(f"handler {spec!r} takes ({names}); write {SHAPES}")
    hints = _hints(function)
    if len(positional) == 2:
        wanted = hints.get(positional[1].name)
        if inspect.isclass(wanted) and not issubclass(Connection, wanted):
            raise SettingsError(
                f"handler {spec!r} wants a {wanted.__name__} as {positional[1].name!r};"
                " it is given a sqlalchemy.Connection"
            )
    first = hints.get(positional[0].name)
    return Handler(
        spec=spec,
        function=function,
        takes_batch=_is_list(first),
        takes_db=len(positional) == 2,
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except Exception:
        # A name that only a type checker sees. The text still tells a list from a message.
        return dict(getattr(target, "__annotations__", {}))


def _is_list(hint: object) -> bool:
    if isinstance(hint, str):
        return hint.split("[")[0].rpartition(".")[2] in ("list", "List", "Sequence", "Iterable", "Collection")
    origin = typing.get_origin(hint) or hint
    return (
        inspect.isclass(origin) and issubclass(list, origin) and issubclass(origin, collections.abc.Iterable)
    )


async def _as_coroutine(result: Any) -> None:
    await result


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it in this thread's event loop for handlers; see `close_runner`."""
    if _loop_is_running():
        coroutine.close()
        raise RuntimeError(
            "an async handler cannot be run inside a running event loop;"
            " call it through `await asyncio.to_thread(...)`"
        )
    if not hasattr(_thread, "runner"):
        _thread.runner = asyncio.Runner()
    _thread.runner.run(coroutine)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def close_runner() -> None:
    """Close the event loop that `Handler.call` opened in this thread, if it did."""
    if hasattr(_thread, "runner"):
        _thread.runner.close()
        del _thread.runner
