"""Power cuts: what an update does to files, as traced, cut at any boundary; what was not synced is lost, kept
or torn.  What lies there afterwards is the old disk or the new one, with a manifest that belongs to it.

The trace is of one real update, of the composer and all that it starts.  A file's bytes are not recorded:
what it held in the end is known, and of what was not yet synced at the cut some part is there, or none.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from composer.disk.manifest import Identity, Manifest, load_manifest, manifest_path, settle
from composer.store.locks import locked
from composer.store.work import clear_folders, lock_path
from tests.faults.experiment import Experiment, Trial
from tests.faults.kills import Subject, assert_sound, subject
from tests.vm.ground import Ground

_CALLS = (
    "openat,creat,dup,dup2,dup3,close,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,"
    "ftruncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir"
)
_WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "ftruncate",
           "fallocate"}  # fmt: skip
# Behind a descriptor that is returned, -y has the path of its file, whatever path it was opened by.
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<([^>]*)>)?")
_PATHS = re.compile(r'(?:(?:\d+|AT_FDCWD)<([^>]*)>, )?"([^"]*)"')
_PATH_OF_FD = re.compile(r"^(?:\d+|AT_FDCWD)<([^>]*)>")


@dataclass(frozen=True)
class Op:
    """One operation below the disk's folder: create, write, sync, syncdir, rename, unlink."""

    kind: str
    path: str
    to: str = ""


def read_trace(path: Path, folder: Path) -> list[Op]:
    """Return what a trace of strace -f -y says of a folder, in order."""
    ops: list[Op] = []
    pending: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        if line.endswith("<unfinished ...>"):
            pending[pid] = rest.strip().removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"^ *<\.\.\. \w+ resumed>(.*)$", rest):
            line = f"{pid} {pending.pop(pid, '')}{resumed[1]}"
        if (found := _LINE.match(line)) and int(found[4]) >= 0:
            ops += _ops_of(found[2], found[3], found[5] or "", folder)
    return ops


def _ops_of(call: str, arguments: str, returned: str, folder: Path) -> Iterator[Op]:
    base = str(folder)
    quoted = [str(Path(place) / name) for place, name in _PATHS.findall(arguments)]
    opened = _PATH_OF_FD.match(arguments)
    target = opened[1].removesuffix(" (deleted)").removesuffix("(deleted)") if opened else ""

    def inside(path: str) -> bool:
        return path == base or path.startswith(f"{base}/")

    if call in ("openat", "creat") and "O_CREAT" in arguments and inside(returned):
        yield Op("create", returned)
        if "O_TRUNC" in arguments:
            yield Op("write", returned)
    elif call in _WRITES and inside(target):
        yield Op("write", target)
    elif call in ("fsync", "fdatasync") and inside(target):
        yield Op("syncdir" if target == base else "sync", target)
    elif call.startswith("rename") and len(quoted) == 2 and inside(quoted[0]):
        yield Op("rename", quoted[0], quoted[1])
    elif call.startswith("unlink") and quoted and inside(quoted[0]):
        yield Op("unlink", quoted[0])


@dataclass
class Content:
    """A file's content: how often it was written to, and how often before its last sync."""

    name: str
    written: int = 0
    synced: int = 0


@dataclass
class Disk:
    """What a storage device holds: names, as they would be found after a cut now, and what may be lost."""

    sure: dict[str, Content] = field(default_factory=dict)
    names: dict[str, Content] = field(default_factory=dict)
    unsure: list[dict[str, Content]] = field(default_factory=list)

    def apply(self, op: Op) -> None:
        if op.kind == "create":
            if op.path not in self.names:
                self._changed({**self.names, op.path: Content(op.path)})
        elif op.kind == "write" and op.path in self.names:
            self.names[op.path].written += 1
        elif op.kind == "sync" and op.path in self.names:
            content = self.names[op.path]
            content.synced = content.written
        elif op.kind == "syncdir":
            self.sure, self.unsure = self.names, []
        elif op.kind == "rename" and op.path in self.names:
            names = {path: content for path, content in self.names.items() if path != op.path}
            self._changed({**names, op.to: self.names[op.path]})
        elif op.kind == "unlink" and op.path in self.names:
            self._changed({path: content for path, content in self.names.items() if path != op.path})

    def _changed(self, names: dict[str, Content]) -> None:
        self.names = names
        self.unsure.append(names)

    def cut(self, chance: random.Random) -> dict[str, tuple[Content, str]]:
        """Return the names that are found after a cut, each with its content and how much of it is there.

        Changes of a folder reach the device in their order, as in any file system with a journal; contents
        reach it in none.
        """
        names = chance.choice([self.sure, *self.unsure])
        fates = {}
        for path, content in names.items():
            whole = content.synced == content.written
            fates[path] = (content, "whole" if whole else chance.choice(("lost", "kept", "torn")))
        return fates


@dataclass(frozen=True)
class Recording:
    """One traced update; ``files`` has what each file held in the end, by its name at the time."""

    folder: Path
    ops: list[Op]
    old: Path
    new: Path
    waiting: bytes
    settled: bytes


def _record(disk: Subject, copies: Path) -> Recording:
    trace = copies / "trace"
    disk.renew()
    copies_new = copies / "new"
    prefix = (
        "strace",
        "-f",
        "-y",
        "-qq",
        "--seccomp-bpf",
        "-s",
        "512",
        "-o",
        str(trace),
        "-e",
        f"trace={_CALLS}",
    )
    ran = disk.place.composer("update", disk.disk, prefix=prefix)
    assert ran.code == 0, ran.stderr
    ops = read_trace(trace, disk.folder)
    trace.unlink()
    shutil.copy2(disk.disk, copies_new)
    settled = manifest_path(disk.disk).read_bytes()
    before = (disk.pristine / manifest_path(disk.disk).name).read_bytes()
    return Recording(disk.folder, ops, disk.pristine / "disk.qcow2", copies_new, settled, before)


def _materialise(recording: Recording, names: dict[str, tuple[Content, str]], chance: random.Random) -> None:
    """Make the folder as the cut left it."""
    folder = recording.folder
    shutil.rmtree(folder)
    folder.mkdir()
    for path, (content, fate) in names.items():
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = _source_of(recording, content)
        if isinstance(source, bytes):
            cut = {"lost": 0, "torn": chance.randrange(len(source)) if source else 0}.get(fate, len(source))
            target.write_bytes(source[:cut])
        elif fate in ("whole", "kept"):
            # The file itself, not a copy: what is wrong with it, or changed in it, would show.
            os.link(source, target)
        else:
            size = source.stat().st_size
            with source.open("rb") as whole, target.open("wb") as part:
                if fate == "torn":
                    part.write(whole.read(chance.randrange(2**20)))
                    part.truncate(chance.choice((part.tell(), size)))


def _source_of(recording: Recording, content: Content) -> Path | bytes:
    name = Path(content.name).name
    if name == "disk.qcow2":  # in the folder itself the old one, in the folder of the work the new one
        return recording.old if Path(content.name).parent == recording.folder else recording.new
    if name == "disk.qcow2.manifest.json":
        return recording.settled
    return recording.waiting if "manifest.json.next" in name else b""


def _initial(recording: Recording) -> Disk:
    names = {str(recording.folder / name): Content(str(recording.folder / name))
             for name in ("disk.qcow2", "disk.qcow2.manifest.json")}  # fmt: skip
    return Disk(dict(names), dict(names))


def _assert_old_or_new(recording: Recording, disk: Path) -> str:
    """Do what the next composer does first; return which of the two disks is there."""
    with locked(lock_path(disk), purpose="test", what="the disk"):
        clear_folders(disk)
        settle(disk)
    manifest = load_manifest(disk)
    assert manifest is not None
    assert manifest.disk == Identity.of(disk), "the manifest belongs to another disk"
    which = "old" if disk.samefile(recording.old) else "new" if disk.samefile(recording.new) else "neither"
    expected = {"old": recording.settled, "new": recording.waiting}[which]
    assert manifest == Manifest.model_validate(json.loads(expected))
    assert sorted(path.name for path in disk.parent.iterdir()) == [
        "disk.qcow2",
        "disk.qcow2.manifest.json",
    ]
    return which


@contextmanager
def cuts(ground: Ground) -> Iterator[Trial]:
    """Cut the power at any boundary of an update."""
    with subject(ground, "powercut") as disk:
        copies = disk.pristine.with_name("powercut.copies")
        copies.mkdir()
        recording = _record(disk, copies)
        kinds = {op.kind for op in recording.ops}
        assert kinds >= {"create", "write", "sync", "syncdir", "rename"}
        (switch,) = [op for op in recording.ops if op.kind == "rename" and op.to == str(disk.disk)]
        made = [op.kind for op in recording.ops if op.path == switch.path]
        assert {"create", "write", "sync"} <= set(made), "the trace must have seen how the new disk was made"
        # The files that the states are made of are sound, both of them, and so is what is made of them.
        assert_sound(disk, boots=ground.boots)
        tried: set[str] = set()
        # Most boundaries are writes to files that the next composer drops; the switch is what matters.
        last = [number for number, op in enumerate(recording.ops) if op.kind != "write"]

        def trial(chance: random.Random) -> None:
            anywhere = chance.randrange(len(recording.ops) + 1)
            cut = anywhere if chance.random() < 0.5 else chance.choice(last) + chance.choice((0, 1))
            device = _initial(recording)
            for op in recording.ops[:cut]:
                device.apply(op)
            _materialise(recording, device.cut(chance), chance)
            which = _assert_old_or_new(recording, disk.disk)
            if which not in tried:  # the same files each time, so once is enough
                tried.add(which)
                ran = disk.place.composer("update", disk.disk)
                assert ran.code == 0, ran.stderr

        yield trial
        shutil.rmtree(copies)


EXPERIMENTS = (Experiment("power-cut", 10, 100, 5000, cuts),)
