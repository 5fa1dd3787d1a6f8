"""Tables and texts that several verbs print."""

from __future__ import annotations

import json
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
        shown.add_row(*(plain(cell) for cell in row))
    Console(highlight=False, markup=False, soft_wrap=False).print(shown)


def plain(text: str) -> str:
    """Drop control characters: what is shown may come from a disk or a guest."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


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

    def say(label: str, text: str) -> None:
        click.echo(f"{click.style(label, bold=True)} {plain(text)}", err=True)

    click.echo(f"{click.style('composer: error:', fg='red', bold=True)} {plain(failure.message)}", err=True)
    if failure.detail:
        for line in failure.detail.splitlines():
            click.echo(f"    | {plain(line)}", err=True)
    if failure.step:
        say("  step:", failure.step)
    if failure.disk:
        say("  disk:", failure.disk)
    if failure.hint:
        say("  try: ", failure.hint)
    if failure.log:
        say("  log: ", str(failure.log))
