"""
The passwords of the compose stack: made once, at random, into a volume that the other services read.

What is there is kept, so that `docker compose up` can be repeated; what is missing is
made again from the passwords. The files may be read by every user inside a container,
since RabbitMQ, PostgreSQL and Forebay each run as another; a container sees them only
where docker-compose.yml mounts the volume.
"""

import os
import secrets
import sys
from pathlib import Path


def main(folder: Path) -> None:
    database = password(folder / "postgres-password")
    broker = password(folder / "rabbitmq-password")
    keep(folder / "database-url", f"postgresql://forebay:{database}@postgres/forebay")
    keep(folder / "rabbitmq.conf", f"default_user = forebay\ndefault_pass = {broker}")
    keep(folder / "rabbitmq-url", f"amqp://forebay:{broker}@rabbitmq/")
    keep(folder / "kafka-url", "kafka://kafka:9092")


def password(file: Path) -> str:
    # Hexadecimal: it means the same in a URL and in RabbitMQ's configuration, unescaped.
    keep(file, secrets.token_hex(24))
    return file.read_text().strip()


def keep(file: Path, text: str) -> None:
    """Write the file if it is not there. Never half of one: a setup that was killed is repeated."""
    if file.exists():
        return
    new = file.with_name(f".{file.name}.new")
    new.write_text(text + "\n")
    new.chmod(0o444)
    os.replace(new, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
