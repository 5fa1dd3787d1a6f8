"""File systems of the host that fill up while something writes: an error in time, and the disk as it was.

Needs root, for file systems of their own.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.experiment import Experiment, Trial
from tests.faults.kills import digest, subject
from tests.vm.ground import Ground
from tests.vm.place import TIMEOUT, Place, Ran

_SECONDS = 5.0
# No more than a build and a template want: each trial fills what is left of it.
_SIZE = "3g"
_POLL_SECONDS = 0.02
# Less than this is nothing: no file system can use up its last few blocks.
_FULL = 2**18


class Filler:
    """Takes all but some bytes of a file system at some moment, and watches when it is full.

    ``spells`` are the times between which there was nothing to be had, in seconds since the epoch.
    """

    def __init__(self, folder: Path, after: float, leave: int) -> None:
        self._folder, self._after, self._leave = folder, after, leave
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.spells: list[tuple[float, float]] = []

    def __enter__(self) -> Filler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        (self._folder / "filler").unlink(missing_ok=True)

    def _free(self) -> int:
        room = os.statvfs(self._folder)
        return room.f_bavail * room.f_frsize

    def _run(self) -> None:
        if self._ended.wait(self._after):
            return
        with (self._folder / "filler").open("wb") as filler:
            while (taken := self._free() - self._leave) > 0:
                try:
                    os.posix_fallocate(filler.fileno(), 0, taken)
                except OSError:  # somebody wrote meanwhile
                    filler.truncate(0)
                    continue
                break
        full: float | None = None
        while not self._ended.wait(_POLL_SECONDS):
            if self._free() < _FULL:
                full = full or time.time()
            elif full is not None:
                self.spells.append((full, time.time()))
                full = None
        if full is not None:
            self.spells.append((full, time.time()))


@contextmanager
def _mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def _ran_in_time(place: Place, filler: Filler, *words: str | Path) -> Ran:
    said: list[str] = []
    starts: list[float] = []
    with filler, place.started(*words) as process:
        assert process.stderr is not None
        # Not by its events, which may have no room either.
        for line in process.stderr:
            said.append(line)
            if line.endswith(" ...\n"):
                starts.append(time.time())
        output, _ = process.communicate(timeout=TIMEOUT)
    ran = Ran(process.returncode, output, "".join(said), [])
    assert starts
    for full, given_back in filler.spells if ran.code != 0 else ():
        # It can be told only when somebody wants to write there, which a phase need not before its end.
        fact = max([full, *(start for start in starts if start < given_back)])
        assert given_back - fact < _SECONDS, (given_back - fact, ran.stderr)
    if ran.code != 0:
        assert "Traceback" not in ran.stderr
        assert "composer: error: " in ran.stderr
    place.wait_for_no_vm(5)
    return ran


@contextmanager
def full(ground: Ground) -> Iterator[Trial]:
    """Fill the file system of the target, the cache, the template or the logs at any offset."""
    with ExitStack() as stack:
        disk = stack.enter_context(subject(ground, "room"))
        small = {
            name: stack.enter_context(_mounted(ground.place.folder / f"small-{name}"))
            for name in ("target", "cache", "runs")
        }
        place = replace(ground.place, cache_in=small["cache"] / "c", runs_in=small["runs"] / "r")
        target = replace(disk, place=place, folder=small["target"] / "disk")
        target.renew()
        ran = place.composer("update", target.disk)
        assert ran.code == 0, ran.stderr

        def trial(chance: random.Random) -> None:
            kind = chance.choice(("target", "cache", "template", "log"))
            target.renew()
            after = chance.uniform(0, 10)
            where = {"template": "cache", "log": "runs"}.get(kind, kind)
            leave = chance.choice((0, chance.randrange(2**20), chance.randrange(64 * 2**20)))
            filler = Filler(small[where], after, leave)
            if kind == "cache":
                for name in ("delta", "bootstrap", "template"):
                    subprocess.run(["rm", "-rf", small["cache"] / "c" / name], check=True)
            if kind == "template":
                subprocess.run(["rm", "-rf", small["cache"] / "c" / "template"], check=True)
                _ran_in_time(place, filler, "helper", "warm", ground.recipe)
            else:
                events = small["runs"] / "events.jsonl"
                more = ("--events", events) if kind == "log" else ()
                ran = _ran_in_time(place, filler, "update", target.disk, *more)
                if ran.code != 0:
                    assert "disk: " in ran.stderr or ran.code == 2, ran.stderr
                    assert target.untouched(), target.files()
                else:
                    assert digest(target.disk) != disk.was
                    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", target.disk], check=True)

        yield trial
        target.renew()
        # With room again all goes well, whatever the trials left in the cache.
        ran = place.composer("update", target.disk)
        assert ran.code == 0, ran.stderr


EXPERIMENTS = (Experiment("no-space", 3, 20, 200, full, asroot=True),)
