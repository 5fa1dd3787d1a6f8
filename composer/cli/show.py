"""What verbs print: texts, tables, JSON, errors.

Much of it comes from disks, repos and guests, which may hope to command a terminal.  So no other module but
the monitors writes to stdout or stderr, and all that is written goes through `plain`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from composer.errors import ComposerError


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout."""
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(plain(cell, lines=False) for cell in row))
    Console(highlight=False, markup=False, soft_wrap=False).print(shown)


def plain(text: str, *, lines: bool = True) -> str:
    """Return a text without what a terminal takes for a command: control characters, changes of direction.

    Line ends stay if ``lines`` is given.
    """
    text = text.expandtabs().replace("\N{NO-BREAK SPACE}", " ")
    return "".join(c if c.isprintable() or (lines and c == "\n") else "�" for c in text)


def say(text: str = "", *, mark: str = "", colour: str | None = None, err: bool = False) -> None:
    """Print a text, behind a mark in a colour if there is one."""
    before = f"{click.style(plain(mark), fg=colour, bold=colour is None)} " if mark else ""
    click.echo(before + plain(text), err=err)


def output(content: bytes, *, err: bool = False, raw: bool = False) -> None:
    """Pass on what a program in a guest wrote: as it is to a file or a pipe, made plain to a terminal.

    With ``raw`` a terminal gets it as it is too.
    """
    stream = sys.stderr if err else sys.stdout
    if stream.isatty() and not raw:
        stream.write(plain(content.decode("utf-8", "replace").replace("\r\n", "\n")))
    else:
        stream.buffer.write(content)
    stream.flush()


def as_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    click.echo(json.dumps(value, indent=1, sort_keys=True))


def timings(rows: Sequence[tuple[str, float]]) -> None:
    """Print how long each phase took."""
    if rows:
        total = sum(seconds for _, seconds in rows)
        shown = [(name, f"{seconds:.1f}") for name, seconds in rows]
        table("", ("phase", "seconds"), [*shown, ("all phases", f"{total:.1f}")])


def error(failure: ComposerError) -> None:
    """Print a failure to stderr: what, evidence, the state of the disk, the way out, the log."""

    say(failure.message, mark="composer: error:", colour="red", err=True)
    for line in (failure.detail or "").splitlines():
        say(f"    | {line}", err=True)
    for label, text in (
        ("  step:", failure.step),
        ("  disk:", failure.disk),
        ("  try: ", failure.hint),
        ("  log: ", failure.log),
    ):
        if text:
            say(str(text), mark=label, err=True)
