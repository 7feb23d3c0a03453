"""Being told to stop while waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def cut_short_by(stop: asyncio.Event) -> AsyncIterator[None]:
    """
    For what may wait for ever: it is cancelled when `stop` is set.

    Raises:
        TimeoutError: it was.
    """
    async with asyncio.timeout(None) as limit:

        async def watch() -> None:
            await stop.wait()
            limit.reschedule(asyncio.get_running_loop().time())

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
