"""The command line of `roll`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from forebay_rolling.compose import Containers
from forebay_rolling.config import Config, checked_version, read_config
from forebay_rolling.errors import RollbackFailed, RollingError, UsageError
from forebay_rolling.hosts import Hosts
from forebay_rolling.processes import Processes
from forebay_rolling.rolling import Platform, Roll
from forebay_rolling.state import Store

CONFIG = Path("/etc/forebay/rolling.toml")

EPILOG = """\
exit codes: 0 done; 1 a check failed, and what ran before runs again; 2 the command or the configuration
is wrong, nothing was touched; 3 going back failed, too, or something broke the roll off; 4 another
deployer is at work
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="roll",
        description="Roll versions of Forebay, instance by instance; docs/rolling.md.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help=f"the installation; default {CONFIG}"
    )
    parser.add_argument(
        "--host", action="append", metavar="USER@HOST[:PORT]",
        help="by SSH on this host, which has a configuration of its own; again for more, in this order",
    )  # fmt: skip
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the deployer's key, for --host")
    parser.add_argument(
        "--known-hosts", type=Path, metavar="FILE", help="the hosts' keys, for --host; others are not trusted"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    to = verbs.add_parser("to", help="bring everything to VERSION, or back to what ran if it fails a check")
    to.add_argument("version", metavar="VERSION")
    rollback = verbs.add_parser("rollback", help="back to the version before, or out of a broken-off roll")
    for one in (to, rollback):
        one.add_argument("--surge", type=int, choices=(0, 1), help="instead of the configured one")
    verbs.add_parser("status", help="what runs, and what is in rotation")
    verbs.add_parser("smoke", help="ask every instance, and send every gateway a canary")
    verbs.add_parser("start", help="start what should run and does not: after the host was started again")
    verbs.add_parser("stop", help="stop everything, gateways first")
    asked = parser.parse_args(arguments)
    try:
        if asked.host:
            _by_ssh(asked)
            return 0
        config = read_config(asked.config)
        store = Store(config.directory)
        platform = make_platform(config, store)
        if asked.verb == "status":
            show(config, platform, store)
            return 0
        with store.alone():
            roll = Roll(config, platform, store)
            match asked.verb:
                case "to":
                    roll.roll(checked_version(asked.version), surge=asked.surge)
                case "rollback":
                    roll.rollback(surge=asked.surge)
                case "smoke":
                    roll.smoke()
                case "start":
                    roll.start()
                case "stop":
                    roll.stop()
    except RollingError as error:
        print(f"roll: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("roll: interrupted; the same command goes on, `roll rollback` goes back", file=sys.stderr)
        return 130
    except Exception as error:
        # Not 1: nobody knows what runs now. A full disk ends here, and what is wrong with us.
        traceback.print_exc()
        print(
            f"roll: broken off: {error or type(error).__name__}; `roll status` shows what runs,"
            " the same command goes on",
            file=sys.stderr,
        )
        return RollbackFailed.code
    return 0


def _by_ssh(asked: argparse.Namespace) -> None:
    if asked.verb in ("start", "stop"):
        raise UsageError(f"`{asked.verb}` is said on the host itself")
    if getattr(asked, "surge", None) is not None:
        raise UsageError("with --host the surge is what the host's configuration says")
    hosts = Hosts(asked.host, identity=asked.identity, known_hosts=asked.known_hosts)
    if asked.verb == "to":
        hosts.roll(checked_version(asked.version))
    else:
        hosts.each(asked.verb)


def make_platform(config: Config, store: Store) -> Platform:
    return Processes(config, store) if config.kind == "processes" else Containers(config)


def show(config: Config, platform: Platform, store: Store) -> None:
    """For people and for scripts: one line an instance."""
    state = store.read()
    print(f"current {state.current or 'none'}; previous {state.previous or 'none'}")
    if state.rolling:
        print(f"a roll to {state.rolling} has not ended: `roll to {state.rolling}` or `roll rollback`")
    inside = {one.name for one in platform.rotation()}
    for role in ("gateway", "consumer"):
        for one in platform.instances(role):
            words = ["ready" if platform.ready(one) else "not ready"]
            if role == "gateway":
                words.append("in rotation" if one.name in inside else "out of rotation")
            print(f"{one.name}  {one.version}  {one.address}  {', '.join(words)}")
    for one in platform.rotation():
        if not platform.alive(one):
            print(f"{one.name}  {one.version}  {one.address}  in rotation")
