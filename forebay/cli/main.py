"""
The `forebay` command: a table of commands, each imported only when it is called.

`forebay --help` answers from the table below and imports no command, no settings,
no database and no web framework. To add a command:

1. Write it in a module of its own as a plain function with a Typer signature, no
   decorator. Its docstring is its help text, printed as it stands: one sentence, then
   `Examples:` with lines to paste, then what else the reader must know.

       # forebay/cli/queues.py
       def queues(config: ConfigOption = None, as_json: JsonOption = False) -> None:
           \"""
           List the queues and how much waits in each.

           Examples:
             forebay queues
             forebay queues --json
           \"""

2. Add a line to COMMANDS: its name ("dead-letters list" for one inside a group), the
   "module:function" and the help line of the overview.

Inside the function import what is heavy (SQLAlchemy, aiohttp, rich); options that many
commands share are types in `forebay.cli._common`, which also loads the settings and
opens broker and database; `forebay.cli._output` prints. Data goes to stdout, all else
to stderr. Return means exit code 0; anything else is raised: `CommandError(text, code)`
or any ForebayError (see `forebay.cli._exit` for the codes). An asynchronous body is run
with `forebay.cli._common.run(coroutine)`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import typer
import typer.core

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter


class Entry(NamedTuple):
    target: str
    help: str


COMMANDS: dict[str, dict[str, Entry]] = {
    "Run": {
        "dev": Entry("forebay.cli.dev:dev", "Gateway and consumer in one process, no setup"),
        "gateway": Entry("forebay.cli.gateway:gateway", "Accept messages over HTTP"),
        "consume": Entry("forebay.cli.consume:consume", "Move messages from the queues to where they belong"),
        "demo": Entry("forebay.cli.demo:demo", "See it: database and broker die, nothing is lost"),
        "admin": Entry("forebay.cli.admin:admin", "The API for operators: dead letters, redrives, queues"),
        "migrate": Entry("forebay.cli.migrate:migrate", "Create or update the tables of the database"),
    },
    "Send and check": {
        "send": Entry("forebay.cli.send:send", "Send one message, a file or NDJSON through a gateway"),
        "load": Entry("forebay.cli.load:load", "Put a steady load on a gateway, and see its senders wait"),
        "verify": Entry("forebay.cli.verify:verify", "Prove that everything sent has arrived, exactly once"),
        "message": Entry("forebay.cli.message:message", "Where one message is now"),
    },
    "Look": {
        "status": Entry("forebay.cli.status:status", "Is it fine, what is behind"),
        "queues": Entry("forebay.cli.queues:queues", "The queues and how much waits in each"),
        "explain": Entry(
            "forebay.cli.explain:explain", "What one queue does, in words, with its retry schedule"
        ),
        "doctor": Entry("forebay.cli.doctor:doctor", "Check this installation; each finding with its fix"),
        "healthcheck": Entry("forebay.cli.healthcheck:healthcheck", "Exit 0 if a process here is ready"),
    },
    "Let in": {
        "api-keys create": Entry("forebay.cli.api_keys:create", "Make a key and print it, once"),
        "api-keys list": Entry("forebay.cli.api_keys:list_", "The keys and what each may do"),
        "api-keys revoke": Entry("forebay.cli.api_keys:revoke", "Make a key worthless"),
    },
    "Repair and tidy": {
        "dead-letters list": Entry("forebay.cli.dead_letters:list_", "List given-up messages, or group them"),
        "dead-letters show": Entry("forebay.cli.dead_letters:show", "Show one given-up message"),
        "dead-letters redrive": Entry(
            "forebay.cli.dead_letters_redrive:redrive", "Send given-up messages back, watched"
        ),
        "dead-letters jobs": Entry("forebay.cli.dead_letters_redrive:jobs", "The redrives, how far they are"),
        "dead-letters edit": Entry("forebay.cli.dead_letters_change:edit", "Repair one and send it"),
        "dead-letters discard": Entry("forebay.cli.dead_letters_change:discard", "Give them up for good"),
        "dead-letters export": Entry("forebay.cli.dead_letters:export", "Write them as NDJSON"),
        "audit": Entry("forebay.cli.audit:audit", "Who sent back, discarded, edited or paused what"),
        "journal status": Entry("forebay.cli.journal:status", "What gateways kept while the broker was away"),
        "journal check": Entry("forebay.cli.journal:check", "Find damaged journals, and repair them"),
        "journal drain": Entry("forebay.cli.journal:drain", "Publish those that no gateway drains"),
        "journal export": Entry("forebay.cli.journal:export", "Write what they hold as NDJSON"),
        "pause": Entry("forebay.cli.controls:pause", "Have all consumers stop taking from a queue"),
        "resume": Entry("forebay.cli.controls:resume", "Have them go on, whoever paused it"),
        "throttle": Entry("forebay.cli.controls:throttle", "Limit a queue to so many messages per second"),
        "prune": Entry("forebay.cli.prune:prune", "Delete old rows, in batches"),
    },
    "Configure": {
        "config init": Entry("forebay.cli.config:init", "Write a commented forebay.toml"),
        "config show": Entry("forebay.cli.config:show", "Every setting, and where its value came from"),
        "config check": Entry("forebay.cli.config:check", "Exit 2 and name the place if a setting is wrong"),
        "config docs": Entry("forebay.cli.config:docs", "The reference of all settings, as Markdown"),
    },
}

GROUPS = {
    "api-keys": "Make, list and revoke the keys that the gateway asks for",
    "journal": "Look at, repair, drain or export what gateways kept while the broker was away",
    "dead-letters": "List, show, redrive, edit or discard given-up messages",
    "config": "Write, show and check the settings",
}

EXAMPLES = """\
  forebay dev                         gateway and consumer on 127.0.0.1:8080, data in forebay-data/
  forebay send orders '{"id": 1}'     put a message on the queue "orders"
  forebay status                      what is behind
  forebay config show                 the settings in force and where they come from"""

ENTRIES = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class HelpAsWritten(typer.core.TyperCommand):
    """A command whose help text is its docstring, line by line."""

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write((self.help or "").rstrip() + "\n\n")
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)


class LazyGroup(typer.core.TyperGroup):
    """Sub-commands from the table, imported when called."""

    prefix = ""

    def list_commands(self, ctx: Context) -> list[str]:
        mine = (name.removeprefix(self.prefix) for name in ENTRIES if name.startswith(self.prefix))
        return list(dict.fromkeys(name.split(" ")[0] for name in mine))

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        name = self.prefix + cmd_name
        if name in GROUPS:
            return _group(name, GROUPS[name], prefix=name + " ")
        return _command(cmd_name, ENTRIES[name]) if name in ENTRIES else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the commands are listed by --help."
            ctx.fail(f"There is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write((self.help or "").rstrip() + "\n\n")
        self.format_usage(ctx, formatter)
        if not self.prefix:
            formatter.write(f"\nExamples:\n{EXAMPLES}\n")
        for section, entries in COMMANDS.items():
            rows: dict[str, str] = {}
            for name, entry in entries.items():
                if not name.startswith(self.prefix):
                    continue
                first, *rest = name.removeprefix(self.prefix).split(" ")
                rows[first] = GROUPS[first] if rest else entry.help
            if rows:
                formatter.write(f"\n{'Commands' if self.prefix else section}:\n")
                formatter.write("".join(f"  {name:<14} {text}\n" for name, text in rows.items()))
        # Not the group's own format_options: that asks every command for its help line and so imports it.
        options = [record for p in self.get_params(ctx) if (record := p.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(options)


def _command(name: str, entry: Entry) -> Command:
    module, function = entry.target.split(":")
    # A missing module of ours is a bug of ours; a missing library inside it names itself.
    callback = getattr(importlib.import_module(module), function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, cls=HelpAsWritten)(callback)
    return typer.main.get_command(app)


def _group(name: str, help: str, *, prefix: str) -> LazyGroup:
    group = LazyGroup(name=name, help=help + ".", rich_markup_mode=None, no_args_is_help=True)
    group.prefix = prefix
    return group


def _show_version(asked: bool) -> None:
    if asked:
        from forebay import __version__

        print(f"forebay {__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


def _root() -> Command:
    def options(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=_show_version
        ),
    ) -> None:
        pass

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(
        cls=LazyGroup,
        no_args_is_help=True,
        help="Forebay: a durable queue between HTTP producers and a slow or dead database.",
    )(options)
    return typer.main.get_command(app)


def run(args: Sequence[str]) -> int:
    """Run one command line; return its exit code."""
    try:
        _root().main(args=list(args), prog_name="forebay")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """One line and an exit code for what went wrong on purpose; a traceback for a bug."""
    from forebay.cli._exit import ExitCode, exit_code
    from forebay.cli._output import fail
    from forebay.errors import ForebayError, SinkMisconfigured, SinkUnavailable

    if isinstance(error, (SinkUnavailable, SinkMisconfigured)):
        # The driver's words, which may name neither a file nor a host.
        fail(
            f"the database cannot be used: {error}\nWhich one that is, and what else is wrong: forebay doctor"
        )
        return exit_code(error)
    if isinstance(error, ForebayError):
        fail(str(error))
        return exit_code(error)
    if isinstance(error, OSError) and error.filename is not None:
        fail(f"{error.filename}: {error.strerror}")
        return ExitCode.FAILED
    raise error


def main(args: Sequence[str] | None = None) -> NoReturn:
    code = run(sys.argv[1:] if args is None else args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`forebay queues | head -1`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def entry_point(name: str) -> Any:
    """The function behind a command's name, for tests and documentation."""
    module, function = ENTRIES[name].target.split(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    main()
