"""Run by Alembic, inside the transaction and under the lock of `forebay.storage.schema.migrate`."""

from alembic import context

context.configure(**context.config.attributes["forebay"])
if context.get_context().dialect.name == "mysql":
    from forebay.storage.mysqlschema import RepeatableDDL

    RepeatableDDL.install(context.get_context())
context.run_migrations()
