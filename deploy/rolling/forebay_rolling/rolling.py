"""
The order of things: what starts, is proven, enters, leaves and stops, and when to go back.

A roll only ever asks what really runs and makes the next step from there. So it does not matter how
often it was killed: started again it goes on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from forebay_rolling.config import Config, Role
from forebay_rolling.errors import CheckFailed, RollbackFailed, UsageError
from forebay_rolling.state import State, Store


@dataclass(frozen=True, slots=True)
class Instance:
    """One running gateway or consumer."""

    role: Role
    name: str
    """Unique among those that run: `gateway-8101`, or a container's name."""
    version: str
    address: str
    """`HOST:PORT` of its HTTP, as the proxy reaches it."""

    def __str__(self) -> str:
        return f"{self.name} ({self.version})"


ROLES: tuple[Role, Role] = ("gateway", "consumer")


class Platform(Protocol):
    """Where instances run. Whatever fails raises CheckFailed with the reason."""

    def check_version(self, version: str) -> None:
        """Raise UsageError if this host does not have the version."""
        ...

    def migrate(self, version: str) -> None:
        """Bring the database to the version's schema. Older versions go on working with it."""
        ...

    def instances(self, role: Role) -> list[Instance]:
        """All that run, proven or not, in rotation or not."""
        ...

    def start(self, role: Role, version: str) -> Instance:
        """Start one, out of rotation; returns at once."""
        ...

    def prove(self, instance: Instance) -> None:
        """Return once it is ready, took a canary and has stayed so."""
        ...

    def alive(self, instance: Instance) -> bool:
        """Whether its process is there; it may well not be ready, in an outage."""
        ...

    def ready(self, instance: Instance) -> bool:
        """Whether it is ready now."""
        ...

    def stop(self, instance: Instance) -> None:
        """Let it drain; it is out of rotation already. It has ended when this raises, too."""
        ...

    def settle(self) -> None:
        """Make true what `rotation` tells, if a deployer was killed while it changed it."""
        ...

    def rotation(self) -> list[Instance]:
        """The gateways that the proxy sends requests to."""
        ...

    def rotate(self, instances: list[Instance]) -> None:
        """Send requests to these from now on; returns when nothing of the proxy's uses another."""
        ...


class Roll:
    """One deployer's work on one installation."""

    def __init__(self, config: Config, platform: Platform, store: Store) -> None:
        self._config = config
        self._platform = platform
        self._store = store

    def roll(self, version: str, *, surge: int | None = None) -> None:
        """
        Bring everything to `version`, or everything back to what ran before.

        Raises:
            UsageError: there is no such version; nothing was touched.
            CheckFailed: it failed a check, and what ran before runs again.
            RollbackFailed: what ran before could not be brought back everywhere.
        """
        surge = self._config.surge if surge is None else surge
        self._platform.check_version(version)
        state = self._store.read()
        if state.current is None:
            state.current = self._only_version()
        self._store.write(dataclasses.replace(state, rolling=version))
        self._store.say(f"rolling to {version}" + (f" from {state.current}" if state.current else ""))
        try:
            if self._config.migrate:
                self._platform.migrate(version)
            # Readers first: no message is written that nobody can read yet.
            self._converge("consumer", version, surge)
            self._converge("gateway", version, surge)
        except CheckFailed as failure:
            self._store.say(f"stopped: {failure}")
            self._go_back(state, version, surge, failure)
        previous = state.previous if state.current == version else state.current
        self._store.write(State(current=version, previous=previous))
        self._store.say(f"all instances run {version}")

    def rollback(self, *, surge: int | None = None) -> None:
        """Undo a roll that was broken off, or else go back to the version before the current one."""
        state = self._store.read()
        target = state.current if state.rolling else state.previous
        if target is None:
            raise UsageError("there is no version to go back to; name one with `roll to VERSION`")
        self._store.say(f"going back to {target}")
        self._platform.check_version(target)
        self._back_to(target, self._config.surge if surge is None else surge)
        # What was left is nothing to go back to: it was broken off, or somebody wanted to be rid of it, and
        # may say `rollback` twice, as a build does whose stage is run again.
        self._store.write(State(current=target, previous=state.previous if state.rolling else None))
        self._store.say(f"all instances run {target}")

    def start(self) -> None:
        """Start what should run and does not: after the host was started again."""
        state = self._store.read()
        if state.current is None:
            raise UsageError("nothing was ever rolled here; start with `roll to VERSION`")
        self._back_to(state.current, self._config.surge)
        self._store.write(State(current=state.current, previous=state.previous))

    def stop(self) -> None:
        """Stop everything, gateways first, so that consumers take what these accepted last."""
        failures = []
        for role in ROLES:
            for instance in self._platform.instances(role):
                try:
                    self._stop(instance)
                except CheckFailed as failure:
                    failures.append(str(failure))
        if failures:
            raise CheckFailed("; ".join(failures))

    def smoke(self) -> None:
        """
        Return if all is there, ready, of one version and takes a canary.

        Raises:
            CheckFailed: it is not; the text says all that was found.
        """
        state = self._store.read()
        found = []
        for role in ROLES:
            all_of_it = self._platform.instances(role)
            serving = self._platform.rotation() if role == "gateway" else all_of_it
            if len(serving) < self._config.count(role):
                found.append(f"{len(serving)} of {self._config.count(role)} {role}s serve")
            for instance in all_of_it:
                if instance.version != state.current:
                    found.append(f"{instance} should run {state.current}")
                try:
                    self._platform.prove(instance)
                except CheckFailed as failure:
                    found.append(str(failure))
        if found:
            raise CheckFailed("; ".join(found))
        self._store.say(f"all instances run {state.current}, are ready and take messages")

    def _only_version(self) -> str | None:
        """What runs where nothing was rolled yet: a stack that was brought up by other means."""
        found = {one.version for role in ROLES for one in self._platform.instances(role)}
        return found.pop() if len(found) == 1 else None

    # ---- one role to one version

    def _converge(self, role: Role, version: str, surge: int) -> None:
        """Replace instances one by one until exactly the right number of `version` serves."""
        platform, number = self._platform, self._config.count(role)
        if role == "gateway":
            platform.settle()
        for stray in self._strays(role):
            # Of a deployer that was killed.
            self._store.say(f"{stray} was never proven: stopping it")
            self._discard(stray)
        while True:
            serving = self._serving(role)
            dead = [one for one in serving if not platform.alive(one)]
            old = sorted(
                (one for one in serving if one.version != version or one in dead),
                key=lambda one: (one not in dead, one.name),
            )
            new = [one for one in serving if one not in old]
            if not old and len(new) == number:
                return
            surplus = len(new) - number
            leaving = old[0] if old else new[-1] if surplus > 0 else None
            missing = len(serving) < number
            if leaving is not None and not missing and (surge == 0 or len(serving) > number):
                self._remove(leaving)
                continue
            # With room for one more, one enters as another leaves: there are never fewer.
            replaced = None if missing else leaving
            self._add(role, version, replaced)
            if replaced is not None:
                self._stop(replaced)

    def _add(self, role: Role, version: str, replaced: Instance | None) -> None:
        """Start one, prove it, and let it enter in the place of another."""
        entering = self._platform.start(role, version)
        self._note(proving=entering.name)
        try:
            self._store.say(f"{entering} started: proving it")
            self._platform.prove(entering)
            self._enter(entering, replaced)
        except CheckFailed:
            self._discard(entering)
            self._note(proving=None)
            raise
        self._note(proving=None)

    def _serving(self, role: Role) -> list[Instance]:
        return self._platform.rotation() if role == "gateway" else self._platform.instances(role)

    def _strays(self, role: Role) -> list[Instance]:
        running = self._platform.instances(role)
        if role == "consumer":
            return [one for one in running if one.name == self._store.read().proving]
        inside = {one.name for one in self._platform.rotation()}
        return [one for one in running if one.name not in inside]

    def _note(self, *, proving: str | None) -> None:
        state = self._store.read()
        state.proving = proving
        self._store.write(state)

    def _enter(self, entering: Instance, leaving: Instance | None) -> None:
        """Into rotation, and `leaving` out of it, in one step; back again if the newcomer fails at once."""
        if entering.role == "consumer":
            return
        before = self._platform.rotation()
        staying = [one for one in before if leaving is None or one.name != leaving.name]
        self._rotate([*filter(self._platform.alive, staying), entering])
        if not self._platform.ready(entering):
            self._rotate(before)
            raise CheckFailed(f"{entering} was ready, and no longer is once it is in rotation")

    def _remove(self, leaving: Instance) -> None:
        if leaving.role == "gateway":
            self._rotate([one for one in self._platform.rotation() if one.name != leaving.name])
        self._stop(leaving)

    def _rotate(self, instances: list[Instance]) -> None:
        self._platform.rotate(instances)
        names = ", ".join(str(one) for one in instances) or "none"
        self._store.say(f"in rotation: {len(instances)} of {self._config.gateways}: {names}")

    def _stop(self, instance: Instance) -> None:
        self._platform.stop(instance)
        self._store.say(f"{instance} stopped")

    def _discard(self, instance: Instance) -> None:
        """Away with one that failed. That it does not even stop well is no news."""
        try:
            self._stop(instance)
        except CheckFailed as failure:
            self._store.say(str(failure))

    # ---- back

    def _go_back(self, state: State, version: str, surge: int, failure: CheckFailed) -> None:
        """
        Raises:
            CheckFailed: it is done, and this is why.
            RollbackFailed: it could not be done.
        """
        if state.current is None:
            self._rotate([one for one in self._platform.rotation() if one.version != version])
            for role in ROLES:
                for instance in self._platform.instances(role):
                    if instance.version == version:
                        self._discard(instance)
            self._store.write(State())
            raise CheckFailed(f"{version} did not start: {failure}; nothing of it runs now") from failure
        if state.current == version:
            # There is nowhere to go back to, and so nothing that is broken off.
            self._store.write(State(current=state.current, previous=state.previous))
            raise CheckFailed(f"{failure}; what ran still runs") from failure
        try:
            self._back_to(state.current, surge)
        except CheckFailed as second:
            raise RollbackFailed(
                f"{version} failed ({failure}), and going back to {state.current} failed, too ({second});"
                f" `roll status` shows what serves, `roll rollback` tries again"
            ) from second
        self._store.write(State(current=state.current, previous=state.previous))
        raise CheckFailed(f"{failure}; all instances run {state.current} again") from failure

    def _back_to(self, version: str, surge: int) -> None:
        # The other way round: writers stop before the readers that know the newer messages.
        self._converge("gateway", version, surge)
        self._converge("consumer", version, surge)
