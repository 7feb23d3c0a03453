"""The picture in the terminal, and the lines where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from forebay.demo.screen import Lines, picture
from forebay.demo.servers import Part
from forebay.demo.story import phases
from tests.unit.demo.test_samples import sample

DATABASE = cast("Part", SimpleNamespace(label="PostgreSQL 15", fate="killed"))
BROKER = cast("Part", SimpleNamespace(label="RabbitMQ", fate="killed"))


def shown(**now: Any) -> str:
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(width=100, seconds=60, **now))
    return captured.get()


def test_the_picture_says_what_happens_and_how_it_stands() -> None:
    story = phases(DATABASE, BROKER, 100)

    text = shown(
        sentence=story[1].sentence, phases=story, phase=story[1],
        samples=[sample(n / 4, 25 * n, min(25 * n, 400), dead=0) for n in range(1, 40)],
    )  # fmt: skip

    assert "✓ steady load" in text
    assert "● database killed" in text
    assert "○ all return" in text
    assert "PostgreSQL 15 killed: senders to the gateway notice nothing" in text
    assert "Forebay 975 575 400 0 0 1 ms 4 ms" in " ".join(text.split())
    assert "×" in text, "nothing new is accepted by the direct endpoint"


def test_the_picture_begins_before_there_is_anything_to_see() -> None:
    story = phases(DATABASE, BROKER, 100)

    assert "starting" in shown(sentence="starting …", phases=story, phase=None, samples=[])


def test_without_a_terminal_each_sentence_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    play: Any = SimpleNamespace(sentence="steady load")
    lines = Lines()

    lines.show(play, [])
    lines.show(play, [sample(0.2, 20, 20)])
    lines.show(play, [sample(0.2, 20, 20), sample(0.5, 50, 49)])
    play.sentence = "the database dies"
    lines.show(play, [sample(5.1, 510, 300)])

    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "accepted" not in line] == ["steady load", "the database dies"]
    assert [line.split("s  ")[0].strip() for line in said if "accepted" in line] == ["0.2", "5.1"]
    assert "waiting 210" in said[-1]
