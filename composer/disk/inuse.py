"""Whether QEMU, or a tool of its, has a disk open, by the locks that it leaves on the file.

The composer's own lock is between composers.  A VM takes QEMU's (block/file-posix.c): one byte for each thing
that it does to the file, and one for each that it lets nobody else do.  Size and time of a disk say nothing
of a VM that has it open and has not written yet.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import Busy

# RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, and the bits of BLK_PERM_*: consistent read, write, write
# unchanged, resize.
_DOES, _LETS_NOBODY, _PERMISSIONS = 100, 200, 4
_WRITES = _DOES + 1
_LETS_NOBODY_WRITE = _LETS_NOBODY + 1
# struct flock of fcntl(2): type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqii")
# A QEMU that was killed lets go when its memory is gone, a tenth of a second after it counts as ended; and
# somebody may be having a look with qemu-img.
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.05


def check_unused(disk: Path, *, readers: bool = True, patience: float = _PATIENCE_SECONDS) -> None:
    """Raise Busy where a VM or another program of QEMU has a disk open for more than ``patience`` seconds.

    Those who only read it count with ``readers``.  Of a disk that is not there, or that we may not read,
    nothing is known.
    """
    asked = (_WRITES, _LETS_NOBODY_WRITE) if readers else (_WRITES,)
    soon = Deadline.after(patience)
    while _has_locks(disk, asked):
        if soon.expired:
            raise _in_use(disk)
        time.sleep(_POLL_SECONDS)


@contextmanager
def kept_from_vms(disk: Path) -> Iterator[None]:
    """Keep QEMU from opening a disk for the block; Busy if it has the disk open by now.

    With locks like those of QEMU, which then ends with "Failed to get ... lock".  On a file system without
    such locks, and of a disk that may not be read, nothing is known and nobody is kept away.
    """
    try:
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        yield
        return
    try:
        with suppress(OSError):
            lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _LETS_NOBODY, _PERMISSIONS, 0, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        # Who opened it before holds one of these; who comes after is refused by ours.
        if any(_is_locked(descriptor, _DOES + number) for number in range(_PERMISSIONS)):
            raise _in_use(disk)
        yield
    finally:
        os.close(descriptor)


def _in_use(disk: Path) -> Busy:
    return Busy(
        f"{disk} is in use by a running VM, or by another program of QEMU",
        hint=f"fuser -v {disk}   tells which, composer vm list   what was kept; shut that down first",
    )


def _has_locks(disk: Path, asked: tuple[int, ...]) -> bool:
    try:
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        return any(_is_locked(descriptor, byte) for byte in asked)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0, 0)
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    except OSError:  # a file system without such locks, where QEMU does without them too
        return False
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
