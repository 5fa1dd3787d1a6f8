"""A running VM as jobs see it, and what its console tells."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from composer.deadline import Deadline
from composer.errors import HelperDied
from composer.helper.domain import Disk

# How long a helper may take until it answers, by the kind of its domain.
BOOT_SECONDS = {"kvm": 30.0, "qemu": 90.0}
_TAIL_LINES = 15
# What the kernel says as it dies, or kills.
_CAUSE = re.compile(r"Kernel panic|Out of memory|BUG:|Oops")
# What terminals take as commands (ECMA-48): colours, cursor, modes.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-_])")


class Machine(Protocol):
    """A running VM, as jobs see it."""

    @property
    def console(self) -> Path:
        """The log of its serial console."""

    def running(self) -> bool:
        """Whether it still runs."""

    def attach(self, disk: Disk) -> None:
        """Give it a disk while it runs."""

    def detach(self, disk: Disk, deadline: Deadline) -> None:
        """Take a disk away; on return no process has its file open."""

    def check(self, doing: str) -> None:
        """Raise HelperDied where it has ended; NoSpace, ComposerError where the host's disk stopped it."""

    def death(self, doing: str) -> HelperDied:
        """Return the error that tells of its end, with its console's last lines."""

    def keep(self) -> None:
        """Leave it running when its block ends."""

    def pause(self) -> None:
        """Stop its clock and its CPUs."""

    def resume(self) -> None:
        """Let it run on."""

    def screenshot(self, path: Path) -> Path | None:
        """Save what its screen shows near ``path``; None where it has no screen."""


def console_tail(console: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a console log, without the control characters of terminals."""
    try:
        with console.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 2**16))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return "(no console log)"
    text = _ESCAPES.sub("", text)
    clean = "".join(c for c in text if c in "\n\t" or c.isprintable())
    said = [line for line in clean.splitlines() if line.strip()]
    kept = said[-lines:]
    # A panic's own line scrolls away under the traces that follow it.
    causes = [line for line in said[:-lines] if _CAUSE.search(line)]
    return "\n".join([*causes[-1:], *kept]) or "(the console is empty)"


def tells_cause(tail: str) -> bool:
    """Whether the lines of a console tell of a kernel that panicked, or killed something."""
    return _CAUSE.search(tail) is not None


@dataclass(frozen=True)
class Abilities:
    """What libvirt says that this host can do, for one kind of domain ('kvm' or 'qemu')."""

    kind: str
    emulator: str
    machine: str
    cpu_mode: str
