"""Composers and VMs that are killed, composers in each other's way: the disk is the old or the new one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.disk.manifest import Identity, load_manifest
from tests.faults.experiment import Experiment, Trial
from tests.vm.ground import Ground
from tests.vm.place import TIMEOUT, Place

_AT_ONCE = 8
# What docs/safety.md promises.
_TOLD_SECONDS = 60


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Subject:
    """A disk for one experiment, put back before each trial; ``pristine`` has the files as they were."""

    place: Place
    folder: Path
    pristine: Path
    was: str

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    def renew(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        # cp -a keeps the times by which the manifest knows its disk
        subprocess.run(["cp", "-a", "--reflink=auto", self.pristine, self.folder], check=True)
        return self.disk

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def untouched(self) -> bool:
        """Whether all is as it was before anything ran: the same bytes, and nothing else beside them."""
        names = sorted(path.name for path in self.pristine.iterdir())
        manifest = "disk.qcow2.manifest.json"
        same = (self.folder / manifest).read_bytes() == (self.pristine / manifest).read_bytes()
        return self.files() == names and same and digest(self.disk) == self.was


@contextmanager
def subject(ground: Ground, name: str) -> Iterator[Subject]:
    """Yield the ground's disk, which is at the first commit, for an experiment of its own."""
    pristine = ground.place.folder / f"{name}.pristine"
    pristine.mkdir()
    ground.built.copied(pristine / "disk.qcow2")
    found = Subject(ground.place, ground.place.folder / name, pristine, digest(pristine / "disk.qcow2"))
    try:
        yield found
    finally:
        shutil.rmtree(found.folder, ignore_errors=True)
        shutil.rmtree(pristine)


def phases_of(events: Path) -> list[str]:
    """The phases that a composer has begun, by its --events so far."""
    with suppress(OSError):
        lines = events.read_text().splitlines()
        kinds = [json.loads(line) for line in lines if line.endswith("}")]
        return [event["name"] for event in kinds if event["kind"] == "phase-start"]
    return []


def assert_sound(subject: Subject, *, boots: bool) -> None:
    """Assert that a disk is whole: its tables, its file system, its objects, and, if asked, that it boots."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", subject.disk], check=True)
    looked = subject.place.composer("inspect", subject.disk, "--deep", "--fsck")
    assert looked.code == 0, looked.stderr
    if boots:
        verified = subject.place.composer("verify", subject.disk)
        assert verified.code == 0, verified.stderr


@contextmanager
def killed(ground: Ground) -> Iterator[Trial]:
    """SIGKILL of the composer, of QEMU or of both, at any instant of an update."""
    with subject(ground, "kills") as disk:
        place, second = ground.place, ground.repo.second
        disk.renew()
        began = time.monotonic()
        ran = place.composer("update", disk.disk)
        assert ran.code == 0, ran.stderr
        whole = time.monotonic() - began

        def trial(chance: random.Random) -> None:
            disk.renew()
            victim = chance.choice(("composer", "qemu", "both"))
            # The switch is short, so it gets more than its share.
            in_publish = victim == "composer" and chance.random() < 0.4
            instant = chance.uniform(0, 4.0 if in_publish else whole)
            code = _update_killed(disk, victim, "publish" if in_publish else None, instant)
            place.assert_cleared(disk.folder)
            if code == 0:  # it was through by then
                assert digest(disk.disk) != disk.was
            elif disk.untouched() and chance.random() < 0.8:
                # The same files as before the trial: whatever holds of those holds of these.
                return
            manifest = load_manifest(disk.disk)
            assert manifest is not None
            assert manifest.disk == Identity.of(disk.disk)
            is_new = digest(disk.disk) != disk.was
            if is_new:
                # Drawn in any case: the same seed must give the same trial.
                drawn = chance.random() < 0.25
                assert_sound(disk, boots=drawn and ground.boots)
            ran = place.composer("update", disk.disk)
            assert ran.code == 0, ran.stderr
            assert second[:12] in ran.stdout
            assert ("nothing to do" in ran.stdout) == is_new
            assert disk.files() == ["disk.qcow2", "disk.qcow2.manifest.json"]

        yield trial


def _update_killed(subject: Subject, victim: str, phase: str | None, seconds: float) -> int:
    """Kill a victim so many seconds after the update, or a phase of it, began; return the exit code."""
    place, events = subject.place, subject.place.folder / "killed.jsonl"
    events.unlink(missing_ok=True)
    with place.started("update", subject.disk, "--events", events) as process:
        while phase and phase not in phases_of(events) and process.poll() is None:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if victim in ("composer", "both"):
            process.kill()
        if victim in ("qemu", "both"):
            for pid in place.qemu_pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        struck = time.monotonic()
        try:
            _, said = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"it does not end; it began {phases_of(events)}") from late
    # It may also go on to the end: where there was nothing to kill yet, or where it was a clone and a helper
    # that boots from cold took its place.
    if process.returncode == 1:
        assert time.monotonic() - struck < _TOLD_SECONDS
        assert "composer: error: " in said
        assert "Traceback" not in said
    return process.returncode


@contextmanager
def crowd(ground: Ground) -> Iterator[Trial]:
    """Eight composers on one disk: one has it, the others are told who that is."""
    with subject(ground, "crowd") as disk:
        place = ground.place

        def trial(_chance: random.Random) -> None:
            disk.renew()
            processes = [
                subprocess.Popen(
                    place.argv("update", disk.disk),
                    env=place.environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                for _ in range(_AT_ONCE)
            ]
            try:
                _wait_for_all_but_one(processes)
                ended = {process.pid: (*process.communicate(timeout=TIMEOUT), process.returncode)
                         for process in processes}  # fmt: skip
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
            winners = [pid for pid, (_, _, code) in ended.items() if code == 0]
            assert len(winners) == 1, ended
            for pid, (_, said, code) in ended.items():
                if pid not in winners:
                    assert code == 1
                    assert re.search(rf"in use by another composer: pid {winners[0]} on ", said), said
            assert digest(disk.disk) != disk.was
            assert disk.files() == ["disk.qcow2", "disk.qcow2.manifest.json"]
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disk.disk], check=True)

        yield trial
        assert_sound(disk, boots=False)


def _wait_for_all_but_one(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until one composer alone is left: those that are refused do not wait for it."""
    began = time.monotonic()
    while (left := sum(process.poll() is None for process in processes)) > 1:
        assert time.monotonic() - began < TIMEOUT, "those that are refused wait"
        time.sleep(0.05)
    assert left == 1, "none was refused while another had the disk"


EXPERIMENTS = (
    Experiment("killed-update", 3, 25, 1000, killed),
    Experiment("eight-composers", 1, 5, 100, crowd),
)
