"""Three ways to show events: a live line on a terminal, plain lines, JSON lines."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from composer.cli.show import plain
from composer.events import Event

_PROGRESS_EVERY_SECONDS = 10.0


def _took(event: Event) -> str:
    how = plain(f", {event.data['how']}", lines=False) if "how" in event.data else ""
    return f"{event.data['seconds']:.1f} s{how}"


class Terminal:
    """For people: the running phase as a live line, ended phases above it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._title = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def handle(self, event: Event) -> None:
        """Show the event."""
        if event.kind == "phase-start":
            self._stop()
            self._title = escape(plain(event.text, lines=False))
            self._status = self._console.status(f"{self._title} ...")
            self._status.start()
        elif event.kind == "progress" and self._status is not None:
            self._status.update(f"{self._title}: {escape(plain(event.text, lines=False))}")
        elif event.kind == "phase-end":
            self._stop()
            self._console.print(
                f"[green]✓[/] {self._title or escape(plain(event.name))}  [dim]{escape(_took(event))}[/]"
            )
        elif event.kind == "warning":
            self._console.print(f"[yellow]![/] {escape(plain(event.text, lines=False))}")
        elif event.kind == "note":
            if event.name == "debug":  # a person is about to use the terminal
                self._stop()
            self._console.print(f"  {escape(plain(event.text, lines=False))}")


class PlainLines:
    """For logs and pipelines: a line for each thing worth one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told = time.monotonic()

    def handle(self, event: Event) -> None:
        """Write the event's line, if it is worth one."""
        line = None
        if event.kind == "phase-start":
            self._told = time.monotonic()
            line = f"{plain(event.text, lines=False)} ..."
        elif event.kind == "phase-end":
            line = f"  {plain(event.name)}: {_took(event)}"
        elif event.kind == "progress" and time.monotonic() - self._told > _PROGRESS_EVERY_SECONDS:
            self._told = time.monotonic()
            line = f"  {plain(event.name)}: {plain(event.text, lines=False)}"
        elif event.kind == "warning":
            line = f"warning: {plain(event.text, lines=False)}"
        elif event.kind == "note":
            line = f"  {plain(event.text, lines=False)}"
        if line is not None:
            self._out.write(line + "\n")
            self._out.flush()


class JsonLines:
    """For programs: each event as one JSON object, with the seconds since the epoch."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def handle(self, event: Event) -> None:
        """Write the event."""
        self._out.write(json.dumps({"time": round(time.time(), 3), **asdict(event)}) + "\n")
        self._out.flush()
