"""The `[database]` table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from forebay.section import PositiveSeconds, Section


class DatabaseSettings(Section):
    """Where messages end up."""

    url: SecretStr | None = None
    """postgresql://user:password@host/name, mysql://user:password@host/name or sqlite:///path. No
    default but in `forebay dev`."""
    payload: bool = True
    """Keep a queryable JSON copy of each body that is JSON, beside the exact bytes."""
    connect_timeout: PositiveSeconds = 5.0
    """How long one attempt to connect may take."""
    statement_timeout: PositiveSeconds = 30.0
    """How long one statement may take before the server ends it. MySQL itself ends only what reads; a
    statement that writes is given up 5 s later."""
    lock_timeout: PositiveSeconds = 5.0
    """How long one statement may wait for a lock. MySQL and MariaDB count in whole seconds."""
    pool_size: Annotated[int, Field(ge=1)] = 4
    """Connections kept per process."""
    answer_retention: PositiveSeconds = 86_400.0
    """How long the answers to forwarded requests are kept."""
    once_only_retention: PositiveSeconds | None = 90 * 86_400.0
    """How long it is remembered which messages a handler or a mapped table has taken: one that comes again
    later is taken for new. Longer than any message can wait, be retried, or rest among the dead letters.
    Not younger than the oldest open dead letter, whatever is set."""
