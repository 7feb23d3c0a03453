"""A PostgreSQL connection that does not wait for ever for a server that has stopped answering."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors


class ImpatientConnection(psycopg.Connection[Any]):
    """
    Closes itself when a statement has had no answer for `answer_timeout` seconds.

    The server's own timeouts end what it still works on. They do not help when it is
    frozen, when the network in between swallows everything, or when a COMMIT waits for
    a synchronous standby that is gone.
    """

    answer_timeout: float | None = None
    gave_up = False

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except errors._WaitTimeout:
            if timeout is not None:
                raise
            # What was asked may still be done: nobody else may read this connection's answers.
            self.gave_up = True
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.answer_timeout:g} s") from None
