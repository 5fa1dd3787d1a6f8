"""What a job tells while it runs.

Jobs send events to a monitor and never print.  The command line has a monitor for terminals, one for
plain lines and one for JSON lines; tests use `Tape`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["phase-start", "phase-end", "progress", "note", "warning", "result"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    ``name`` is the phase it belongs to, ``text`` what a user reads, ``data`` what a program reads
    (``seconds`` of a phase that ended, ``done`` and ``bytes`` of a progress).
    """

    kind: Kind
    name: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Monitor(Protocol):
    """Where events go."""

    def handle(self, event: Event) -> None:
        """Take one event; must not raise and must not block for long."""


class Tape:
    """A monitor that keeps what it is told, for tests and for phase timings."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)

    def texts(self, kind: Kind) -> list[str]:
        """Return the texts of all events of one kind."""
        return [event.text for event in self.events if event.kind == kind]


class Fanout:
    """A monitor that hands each event to several others."""

    def __init__(self, *monitors: Monitor) -> None:
        self._monitors = monitors
        self._one_at_a_time = threading.Lock()

    def handle(self, event: Event) -> None:
        """Hand the event on; a monitor that cannot write (a full disk, a closed pipe) stops no job."""
        with self._one_at_a_time:
            for monitor in self._monitors:
                with suppress(OSError, ValueError):
                    monitor.handle(event)


@dataclass(frozen=True)
class Reporter:
    """What jobs hold: a monitor with words for the events that they send."""

    monitor: Monitor

    def note(self, name: str, text: str, **data: Any) -> None:
        """Tell something worth a line."""
        self.monitor.handle(Event("note", name, text, data))

    def warn(self, name: str, text: str, **data: Any) -> None:
        """Tell of something that is not as asked, and what was done instead."""
        self.monitor.handle(Event("warning", name, text, data))

    def progress(self, name: str, text: str, **data: Any) -> None:
        """Tell how far a phase is."""
        self.monitor.handle(Event("progress", name, text, data))

    def started(self, name: str, text: str) -> None:
        """Tell that a phase begins."""
        self.monitor.handle(Event("phase-start", name, text))

    def ended(self, name: str, seconds: float, **data: Any) -> None:
        """Tell that a phase ended well after ``seconds``."""
        self.monitor.handle(Event("phase-end", name, "", {"seconds": round(seconds, 3), **data}))

    def result(self, name: str, text: str, **data: Any) -> None:
        """Tell the outcome of the whole job."""
        self.monitor.handle(Event("result", name, text, data))

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Bracket a phase; its end is told only where it ends well."""
        self.started(name, text)
        began = time.monotonic()
        yield
        self.ended(name, time.monotonic() - began)
