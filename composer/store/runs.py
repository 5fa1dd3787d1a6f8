"""The folders of running jobs: one per composer, under the lock of its owner.

All that a job needs while it runs (libvirt's state, sockets, keys, the console's log) lies in its
folder.  A folder whose lock is free is a leftover: its VMs are ended, which are our QEMU
processes whose guest has the run's name, and the folder is removed.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from composer.deadline import Deadline
from composer.errors import BadInput
from composer.process import companion, follower
from composer.store.folders import Folders
from composer.store.locks import is_abandoned, is_locked, locked

_OWNER_LOCK = "owner.lock"
_VM = "vm.json"
_KEPT = "kept"


def opened_driver(folder: Path) -> Path:
    """Make the folder in which libvirt's driver keeps its state in this process; it goes with the process.

    libvirt's threads write into it to the very end, and make it anew for that, so a program removes it that
    outlives us.
    """
    root = folder / f"p{os.getpid()}-{secrets.token_hex(3)}"
    root.mkdir(mode=0o700, parents=True)
    held = ExitStack()
    held.enter_context(locked(root / _OWNER_LOCK, purpose="libvirt's driver", what=str(root)))
    atexit.register(held.close)  # so it is held until then
    follower([sys.executable, "-P", "-m", "composer.store.reaper", "driver", str(root)])
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def end_driver(root: Path) -> bool:
    """End what libvirt's driver of a dead process left, and remove its state; return whether anything ran.

    That is what it asked QEMU's abilities with, a daemon, and a VM that was only about to run when its run
    was cleared.  VMs of kept runs stay.
    """
    folder = os.fsencode(root) + b"/"

    def left(argv: Sequence[bytes]) -> bool:
        if not any(folder in word for word in argv):
            return False
        guests = [os.fsdecode(word[6:]) for word in argv if word.startswith(b"guest=")]
        return not any(Run(root.parent / re.split("[-,]", guest)[0]).kept for guest in guests)

    ended = _killed(_qemus(left))
    shutil.rmtree(root, ignore_errors=True)
    return ended


def _qemus(chosen: Callable[[Sequence[bytes]], bool]) -> list[int]:
    """Return the QEMU processes that are chosen by their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            argv = (process / "cmdline").read_bytes().split(b"\0")
            if b"qemu" in argv[0].rpartition(b"/")[2] and chosen(argv[1:]):
                found.append(int(process.name))
    return found


def _killed(pids: Collection[int]) -> bool:
    """Kill processes; return whether there were any."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


@dataclass(frozen=True)
class Run:
    """The folder of one running job."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which its domain bears too."""
        return self.path.name

    @property
    def console(self) -> Path:
        """The log of the helper's serial console."""
        return self.path / "console.log"

    @property
    def alive(self) -> bool:
        """Whether the composer that owns it still runs."""
        return is_locked(self.path / _OWNER_LOCK)

    @property
    def kept(self) -> bool:
        """Whether the user asked to keep its VM."""
        return (self.path / _KEPT).exists()

    def keep(self) -> None:
        """Have the folder and its VM outlive the job."""
        (self.path / _KEPT).touch()

    def describe(self, purpose: str, connect: str) -> None:
        """Write down what `composer vm list` tells of this run."""
        said = {"purpose": purpose, "connect": connect, "pid": os.getpid(), "since": time.time()}
        (self.path / _VM).write_text(json.dumps(said))

    def description(self) -> dict[str, str | int | float]:
        """Return what `describe` wrote, empty where it did not come to that."""
        try:
            said = json.loads((self.path / _VM).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def part(self, name: str) -> Run:
        """Return a run inside this one, for one more VM; it goes with this one."""
        part = Run(self.path / f"{self.name}-{name}")
        part.path.mkdir(mode=0o700)
        return part

    def qemu_pids(self) -> list[int]:
        """Return the processes that are VMs of this run, under any libvirt driver.

        libvirt puts `guest=DOMAIN` into QEMU's arguments, and domains are named for their run; some of
        its versions name the files in the folder too, others hand over descriptors.
        """
        guest = re.compile(rb"guest=" + re.escape(os.fsencode(self.name)) + rb"[-,]")
        folder = os.fsencode(self.path) + b"/"
        return _qemus(lambda argv: any(folder in word or guest.match(word) for word in argv))

    def end_vms(self) -> bool:
        """Kill the run's VMs; return whether there were any."""
        return _killed(self.qemu_pids())

    def clear(self) -> bool:
        """End the run's VM, if any is left, and remove the folder; False where the VM is not ours to end."""
        self.end_vms()
        deadline = Deadline.after(5)
        while self.qemu_pids():
            if deadline.expired:
                return False
            time.sleep(0.02)
        shutil.rmtree(self.path, ignore_errors=True)
        return True


@dataclass(frozen=True)
class Runs:
    """The folders of all running jobs of one user; new ones are made in ``folder``."""

    folder: Path
    elsewhere: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folders: Folders) -> Self:
        """Return those of a user."""
        return cls(folders.runs, folders.elsewhere)

    def _named(self, pattern: str) -> list[Path]:
        places = (self.folder, *self.elsewhere)
        return [path for place in places for path in sorted(place.glob(pattern)) if path.is_dir()]

    def all(self) -> list[Run]:
        """Return every run, its owner alive or not."""
        return [Run(path) for path in self._named("c*")]

    def find(self, prefix: str) -> Run:
        """Return the one run whose name begins with ``prefix``; BadInput when none or many do."""
        found = [run for run in self.all() if run.name.startswith(prefix)]
        if len(found) != 1:
            count = "no" if not found else str(len(found))
            raise BadInput(
                f"{count} helper VMs have a name that begins with {prefix!r}", hint="composer vm list"
            )
        return found[0]

    def leftovers(self) -> Iterator[Run]:
        """Yield the runs whose composer is gone, but those that the user kept."""
        for run in self.all():
            wanted = run.kept and bool(run.qemu_pids())
            if is_abandoned(run.path / _OWNER_LOCK) and not wanted:
                yield run

    def clear_leftovers(self) -> list[str]:
        """Clear the runs whose composer is gone, unless the user kept them; return their names."""
        for root in self._named("p*"):  # of libvirt's embedded drivers
            if is_abandoned(root / _OWNER_LOCK):
                end_driver(root)
        return [run.name for run in self.leftovers() if run.clear()]

    @contextmanager
    def open(self, purpose: str, locks: Sequence[int] = ()) -> Iterator[Run]:
        """Yield a fresh run, cleared at the end unless it is to be kept.

        ``locks`` are descriptors whose locks are held until its VMs have ended, whatever ends us.
        """
        run = Run(self.folder / f"c{secrets.token_hex(4)}")
        run.path.mkdir(mode=0o700)
        reaper = [sys.executable, "-P", "-m", "composer.store.reaper", "run", str(run.path)]
        lock = run.path / _OWNER_LOCK
        soon = Deadline.after(5)  # `vm list` looks at the lock by taking it for a moment
        with locked(lock, purpose=purpose, what=f"run {run.name}", wait=soon), companion(reaper, locks):
            try:
                yield run
            finally:
                if not run.kept:
                    run.clear()
