"""Run by Alembic, inside the transaction and under the lock of `forebay.storage.schema.migrate`."""

from alembic import context

context.configure(**context.config.attributes["forebay"])
context.run_migrations()
