"""Work on a disk: the disk's lock, and a folder beside it for what may take its place.

The lock is a file beside the disk.  The companions of the work inherit it, so it is held until the last VM
that could write has ended, even where the composer was killed.  A note in the cache says where work is
going on, so that `composer gc` finds what was left wherever the disk lies.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import Busy
from composer.process import companion
from composer.store.files import own_folder
from composer.store.folders import Folders, size_of, written_beside
from composer.store.locks import locked

# What mkdtemp puts behind a prefix.
_RANDOM = "?" * 8


def end_users(disk: Path) -> None:
    """End the programs of ours that still work in a folder beside a disk, such as a qemu-img."""
    prefix = os.fsencode(disk.with_name(_work_prefix(disk)))
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                if process.stat().st_uid == os.getuid() and _works_in(process, prefix):
                    os.kill(int(process.name), signal.SIGKILL)


def _works_in(process: Path, prefix: bytes) -> bool:
    """Whether a process has a file open in a folder whose path begins so, or names one in its arguments."""
    argv = (process / "cmdline").read_bytes().split(b"\0")
    if not argv[0].rpartition(b"/")[2].startswith((b"qemu", b"setpriv", b"prlimit")):
        return any(prefix in word for word in argv[1:])
    opened = [os.fsencode(file.readlink()) for file in (process / "fd").iterdir()]
    return any(prefix in word for word in (*argv[1:], *opened))


def _work_prefix(disk: Path) -> str:
    return f".{disk.name}.work."


def lock_path(disk: Path) -> Path:
    """Return where the lock of a disk lies."""
    return disk.with_name(f".{disk.name}.lock")


def _folders_of(disk: Path) -> list[Path]:
    return list(disk.parent.glob(f"{glob.escape(_work_prefix(disk))}{_RANDOM}"))


def clear_folders(disk: Path, *, dry: bool = False) -> int:
    """Remove what an earlier composer left beside a disk, the disk's lock held; return its bytes.

    With ``dry`` nothing is removed.
    """
    freed = 0
    for left in _folders_of(disk):
        freed += size_of(left)
        if not dry:
            shutil.rmtree(left, ignore_errors=True)
    return freed


@dataclass(frozen=True)
class Work:
    """Work on ``disk``, which may not exist yet; ``lock`` is the descriptor that holds its lock."""

    disk: Path
    lock: int

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a scratch folder beside the disk, on the same file system, for what may replace the disk.

        Its path goes by a descriptor of this process (proc(5)), so that it names this very folder, for QEMU
        too, even if somebody who may write to the disk's folder puts another in its place.  Root's does not:
        root's QEMU has no capabilities, and so may not look into /proc of root's composer.
        """
        folder = Path(tempfile.mkdtemp(prefix=_work_prefix(self.disk), dir=self.disk.parent))
        try:
            descriptor = own_folder(folder, self.lock)
            try:
                yield folder if os.geteuid() == 0 else Path(f"/proc/{os.getpid()}/fd/{descriptor}")
            finally:
                os.close(descriptor)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def working_on(disk: Path, folders: Folders, purpose: str, wait: Deadline | None = None) -> Iterator[Work]:
    """Hold the lock of a disk for the block.

    Raises Busy, naming the holder, where another composer has it and ``wait`` is None or has passed.
    """
    what = f"the disk {disk}"
    note = _noted(disk, folders.work)  # before the lock: whatever we leave, `gc` knows of
    with ExitStack() as held:
        try:
            lock = held.enter_context(locked(lock_path(disk), purpose=purpose, what=what, wait=wait))
            clear_folders(disk)  # what an earlier composer left is nobody's now
            if not note.exists():  # whoever had the lock has removed it
                _noted(disk, folders.work)
            reaper = [sys.executable, "-P", "-m", "composer.store.reaper"]
            held.enter_context(companion([*reaper, "work", str(disk), str(lock)], keeps=(lock,)))
        except Busy as error:
            if wait is None:
                error.hint = "--wait   waits until it has ended"
            raise
        except OSError:
            note.unlink(missing_ok=True)
            raise
        try:
            yield Work(disk, lock)
        finally:
            # Before the companion removes the lock: afterwards it is the next one's.
            note.unlink(missing_ok=True)


def _noted(disk: Path, notes: Path) -> Path:
    notes.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = notes / f"{hashlib.sha256(os.fsencode(disk)).hexdigest()[:32]}.json"
    with written_beside(note, 0o600) as new:
        said = {"disk": os.fsencode(disk).hex(), "folder": disk.parent.stat().st_ino}
        new.write_text(json.dumps(said))
    return note


def noted_disks(notes: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each note, and the disk that it names; but where another file system lies, as is not mounted now.

    That is where the folder is another one than was noted and nothing of ours lies beside the disk.
    """
    for note in sorted(notes.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(note.read_text())
            disk = Path(os.fsdecode(bytes.fromhex(said["disk"])))
            known = disk.parent.stat().st_ino == said.get("folder")
            if known or lock_path(disk).exists() or _folders_of(disk):
                yield note, disk
