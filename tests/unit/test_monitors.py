"""How events are shown: to people, to logs, to programs."""

from __future__ import annotations

import io
import json

import pytest

from composer.cli.monitors import JsonLines, PlainLines, Terminal
from composer.events import Event, Monitor

# What a guest, or a program of a tree, may say.
_HOSTILE = "\x1b]0;owned\x07\x1b[2J\r[bold]"


@pytest.mark.parametrize("kind", ["phase-start", "progress", "phase-end", "note", "warning"])
@pytest.mark.parametrize("way", ["plain", "terminal"])
def test_what_a_guest_says_does_not_reach_the_terminal_as_it_is(
    kind: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    monitor: Monitor = PlainLines(out) if way == "plain" else Terminal()
    monitor.handle(Event("phase-start", "pull", _HOSTILE))
    monitor.handle(Event(kind, "pull", _HOSTILE, {"seconds": 1.0}))  # type: ignore[arg-type]
    if isinstance(monitor, Terminal):
        monitor.__exit__(None, None, None)
    said = out.getvalue() + capsys.readouterr().err
    # Only a terminal has a live line.
    assert "[bold]" in said or (way, kind) in (("terminal", "phase-start"), ("terminal", "progress"))
    assert not {"\x1b", "\x07", "\r"} & set(said)


def test_a_program_gets_it_whole() -> None:
    out = io.StringIO()
    JsonLines(out).handle(Event("note", "x", _HOSTILE))
    assert json.loads(out.getvalue())["text"] == _HOSTILE
