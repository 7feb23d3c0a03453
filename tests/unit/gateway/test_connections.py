"""Too many connections: those that do nothing for others go, and never one that is being answered."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from gateway.connections import OTHER_FILES, Connections, most_connections
from tests.unit.gateway.support import request, running
from tests.waiting import until


class Client:
    def __init__(self, *, at_work: bool = False) -> None:
        self.at_work = at_work
        self.gone = False

    def give_up(self) -> None:
        self.gone = True


def test_the_one_that_sends_for_longest_goes_then_the_one_that_rests_for_longest() -> None:
    connections = Connections(4)
    working, rested, resting, slow = Client(at_work=True), Client(), Client(), Client()
    for client in (working, rested, resting, slow):
        connections.add(client)
    connections.answered(rested)
    connections.answered(resting)

    new = [Client(at_work=True) for _ in range(3)]
    went = []
    for client in new:
        connections.add(client)
        went.append([c.gone for c in (working, slow, rested, resting)])

    assert went == [
        [False, True, False, False],
        [False, True, True, False],
        [False, True, True, True],
    ]
    assert list(connections) == [working, *new]


def test_one_that_begins_another_request_is_sending_again() -> None:
    connections = Connections(2)
    first, second = Client(), Client()
    for client in (first, second):
        connections.add(client)
        connections.answered(client)
    connections.began(second)

    connections.add(Client(at_work=True))

    assert (first.gone, second.gone) == (False, True)
    connections.discard(first)
    assert len(connections) == 1


def test_while_all_are_at_work_one_more_is_taken() -> None:
    connections = Connections(1)
    first, second = Client(at_work=True), Client(at_work=True)

    connections.add(first)
    connections.add(second)

    assert not first.gone
    assert not second.gone


async def test_slow_clients_give_way_to_new_ones() -> None:
    """More connections than may be open: the slow ones are closed, oldest first, and a good one is served."""
    async with running(max_connections=10) as gateway:
        slow = [await gateway.connect() for _ in range(10)]
        for n, client in enumerate(slow):
            kinds = (b"", b"POST /v1/qu", request(b"x" * 100)[:-50])
            await client.send(kinds[n % 3])
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: len(parts.ingest.bodies_on_their_way) == 3)

        assert (await gateway.raw(request())).status == 202
        assert await slow[0].closed()


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_of_open_files_is_raised_as_far_as_needed(files: tuple[int, int]) -> None:
    _, hard = files
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))

    assert most_connections(2_000) == 2_000
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2_000 + OTHER_FILES


def test_above_the_hard_limit_there_are_fewer(files: tuple[int, int]) -> None:
    _, hard = files

    assert most_connections(hard) == hard - OTHER_FILES
