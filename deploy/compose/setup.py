"""
What the compose stack keeps secret: made once, at random, into a volume that the other services read.

    docker compose run --rm setup show      how to send a first message, and who logs in where

`docker compose up` runs it without a word each time: passwords and the API key are kept,
what follows from them is written anew, so that a new release finds what it needs. A
container sees the files only where docker-compose.yml mounts the volume. Those of
RabbitMQ, PostgreSQL and the others may be read by every user inside, since each of these
runs as another one; those of Forebay by itself alone.
"""

import os
import secrets
import sys
from pathlib import Path

from gateway.keys_file import changing, make

OURS, THEIRS = 0o400, 0o444
KEY_NAME = "compose"
FIRST_QUEUE = "orders"
NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")


def prepare(folder: Path) -> None:
    password = {
        name: kept(folder / f"{name}-password") for name in ("postgres", "mysql", "rabbitmq", "grafana")
    }
    # One word for all nodes: who knows it is one of them.
    kept(folder / "erlang-cookie")
    user = f"forebay:{password['rabbitmq']}"
    # These names stand for as many nodes as run.
    write(folder / "rabbitmq-url", f"amqp://{user}@rabbitmq-nodes/", OURS)
    write(folder / "rabbitmq-management-url", "http://rabbitmq-nodes:15672/rabbitmq", OURS)
    write(folder / "kafka-url", "kafka://kafka-nodes:9092", OURS)
    write(folder / "postgres-url", f"postgresql://forebay:{password['postgres']}@postgres/forebay", OURS)
    write(folder / "mysql-url", f"mysql://forebay:{password['mysql']}@mysql/forebay", OURS)
    write(folder / "rabbitmq.conf", "\n".join(rabbitmq_conf(password["rabbitmq"])), THEIRS)
    write(folder / "rabbitmq-joins.conf", "\n".join([*rabbitmq_conf(password["rabbitmq"]), *joins()]), THEIRS)
    keep_api_key(folder / "api-keys.json", folder / "api-key")


def rabbitmq_conf(password: str) -> list[str]:
    return [
        "default_user = forebay",
        f"default_pass = {password}",
        "cluster_name = forebay",
        "disk_free_limit.absolute = 2GB",
        "management.path_prefix = /rabbitmq",
    ]


def joins() -> list[str]:
    """For the second and third node. The first one has nobody to join: it may be the only one."""
    return [
        "cluster_formation.peer_discovery_backend = classic_config",
        *(f"cluster_formation.classic_config.nodes.{n} = rabbit@{node}" for n, node in enumerate(NODES, 1)),
    ]


def kept(file: Path) -> str:
    """What the file says; at random if there is none."""
    if not file.exists():
        # Hexadecimal: it means the same in a URL and in RabbitMQ's configuration, unescaped.
        write(file, secrets.token_hex(24), THEIRS)
    return file.read_text().strip()


def keep_api_key(keys: Path, key_file: Path) -> None:
    """The key for whoever is on this machine, its hash for the gateways. Other keys of the file stay."""
    if key_file.exists() and keys.exists():
        return
    key, hashed = make(KEY_NAME, queues=("*",))
    with changing(keys) as known:
        known[:] = [other for other in known if other.name != KEY_NAME] + [hashed]
    write(key_file, key, OURS)


def write(file: Path, text: str, mode: int) -> None:
    """Never half of it: a setup that was killed is repeated."""
    if file.exists() and file.read_text() == text + "\n":
        return
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(0o600)
    new.write_text(text + "\n")
    new.chmod(mode)
    os.replace(new, file)


def show(folder: Path, gateway: str, operators: str) -> str:
    key = (folder / "api-key").read_text().strip()
    rabbitmq, grafana = (
        (folder / f"{name}-password").read_text().strip() for name in ("rabbitmq", "grafana")
    )
    return f"""\
# Send a first message:
curl -i {gateway}/v1/queues/{FIRST_QUEUE}/messages -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' -d '{{"order": 1}}'

# For `forebay send`, and whatever else asks for it:
export FOREBAY_URL={gateway} FOREBAY_API_KEY={key}

# For people:
#   {operators}/rabbitmq/    user forebay, password {rabbitmq}
#   {operators}/grafana/     user admin, password {grafana}    (profile observability)
"""


def main(arguments: list[str]) -> None:
    folder = Path(os.environ.get("SECRETS", "/run/forebay"))
    if arguments not in ([], ["show"]):
        sys.exit("setup makes what is missing; `setup show` shows it; there is nothing else")
    prepare(folder)
    if arguments:
        print(show(folder, os.environ["GATEWAY_URL"], os.environ["OPERATORS_URL"]), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
