"""A shell in another composer's VM, through the port that every helper keeps free for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from composer.deadline import Deadline
from composer.errors import BadInput, HelperDied
from composer.helper import seed, shell
from composer.helper.keys import RunKeys
from composer.helper.shell import PortShell
from composer.store.runs import Run


@dataclass(frozen=True)
class _Watched:
    """The VM of a run, as far as its processes tell."""

    run: Run

    def running(self) -> bool:
        return bool(self.run.qemu_pids())

    def check(self, doing: str) -> None:
        if not self.running():
            raise self.death(doing)

    def death(self, doing: str) -> HelperDied:
        return HelperDied(f"the VM {self.run.name} ended while {doing}", log=self.run.console)


@contextmanager
def debug_shell(run: Run, deadline: Deadline) -> Iterator[PortShell]:
    """Yield a shell in the VM of a run; BadInput where it has none."""
    if not run.qemu_pids():
        raise BadInput(f"the VM {run.name} does not run", hint="composer vm list")
    try:
        keys = RunKeys.found(run.path / "key")
    except FileNotFoundError:
        raise BadInput(
            f"the VM {run.name} has no shell yet", hint=f"composer vm console {run.name}"
        ) from None
    watched = _Watched(run)
    with shell.dialled(run.path / "debug", deadline) as line:
        seed.ask_in(line, watched, deadline)
        with shell.opened(line, keys, watched, deadline) as opened:
            yield opened
