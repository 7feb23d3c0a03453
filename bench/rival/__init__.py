"""
The same consumer as one would write it with Celery, or with FastStream, to compare with `forebay consume`.

Each message becomes a row of the same table, in a transaction of its own, and is acknowledged after its
commit. Both are set up kindly: nothing is logged per message, 500 messages are fetched ahead, Celery
keeps no results and forks no processes.
"""

from __future__ import annotations

import os

INSERT = """
INSERT INTO messages (id, queue, content_type, headers, payload, body, accepted_at, attempts, stored_at)
VALUES (%s, 'bench', 'application/json', '{"source": "bench"}', %s, %s, now(), 1, now())
ON CONFLICT (id) DO NOTHING
"""
PREFETCH = 500
BROKER = os.environ["BENCH_BROKER_URL"]
DATABASE = os.environ.get("BENCH_DATABASE_URL", "")
