"""Locks between composers: flock on a file that names its holder.

flock is released by the kernel when its holder dies, whatever kills it, so no lock is ever stale.  A
program that inherits the descriptor holds the lock as well, until it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import Busy
from composer.process import has_ended
from composer.store.folders import MAKING_SECONDS

_POLL_SECONDS = 0.1
# A holder says who it is a moment after it has the lock.
_INTRODUCTION_SECONDS = 0.5
# Where a composer was killed, its companions have the lock until its VMs have ended (reaper.py).
_LAST_RITES_SECONDS = 20.0
_LEFT_SECONDS = 1.0
# A link is not followed; a FIFO in a lock's place does not hold us up.
_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# In the year 2242: what time.localtime takes everywhere.
_LATEST = 2**33


@dataclass(frozen=True)
class _Holder:
    pid: int
    host: str
    since: float
    purpose: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid} on {self.host:.64}, since {since}, for {self.purpose:.128}"

    @property
    def dead(self) -> bool:
        """Whether it is known to be dead: of another host nothing is known."""
        return self.host == socket.gethostname() and has_ended(self.pid)


def _holder(descriptor: int) -> _Holder | None:
    """Return who holds the lock, from what the holder wrote into it."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        said = json.loads(os.pread(descriptor, 4096, 0))
        holder = _Holder(int(said["pid"]), str(said["host"]), float(said["since"]), str(said["purpose"]))
        return holder if 0 < holder.pid < _LATEST and 0 <= holder.since < _LATEST else None
    return None


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the path still names the file we opened; its last holder removed it otherwise."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


@contextmanager
def locked(path: Path, *, purpose: str, what: str, wait: Deadline | None = None) -> Iterator[int]:
    """Hold the lock file ``path`` for the block, and yield its descriptor.

    Raises Busy, naming the holder, when another has it and ``wait`` is None or has passed.  The file
    goes away with the lock, so nothing is left beside a user's disk.
    """
    descriptor = _acquire(path, what, wait)
    try:
        said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "purpose": purpose}
        # On a full file system nobody learns who it is, but the lock holds: what frees it wants that too.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(said).encode(), 0)
        yield descriptor
    finally:
        remove_held(descriptor, path)
        os.close(descriptor)


def remove_held(descriptor: int, path: Path) -> None:
    """Remove the lock file that ``descriptor`` holds, unless it is gone and the path another one's by now."""
    if _still_there(descriptor, path):
        path.unlink(missing_ok=True)


def _acquire(path: Path, what: str, wait: Deadline | None) -> int:
    introduction = Deadline.after(_INTRODUCTION_SECONDS)
    last_rites = Deadline.after(_LAST_RITES_SECONDS)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o644)
        except PermissionError:
            _refuse_where_held(path, what)
            # A crash of the host left it there, and it is another user's, in a folder that is ours too.
            if path.exists() and remove_when_free(path, Deadline.after(_LEFT_SECONDS)):
                continue
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            patience = introduction if holder is None else last_rites if holder.dead else Deadline.after(0)
            if patience.expired and (wait is None or wait.expired):
                raise _busy(what, holder) from None
            time.sleep(_POLL_SECONDS)
            continue
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)


def _busy(what: str, holder: _Holder | None) -> Busy:
    who = holder or "a process that did not say who it is"
    return Busy(f"{what} is in use by another composer: {who}", hint="try again once that has ended")


def _refuse_where_held(path: Path, what: str) -> None:
    """Raise Busy where another user holds a lock that is not ours to take, but to read."""
    with suppress(OSError):
        if is_locked(path):
            descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
            try:
                raise _busy(what, _holder(descriptor)) from None
            finally:
                os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file ``path`` now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_abandoned(lock: Path) -> bool:
    """Whether whoever held the lock file in a folder, for as long as he used the folder, is gone.

    Where there is no lock file yet, or one that nobody has written into, the folder is being made this
    moment; its maker has a minute.
    """
    try:
        # Asked first: he who is only writing holds it by then.
        begun = lock.exists() and lock.stat().st_size > 0
        if is_locked(lock):
            return False
        return begun or time.time() - lock.parent.stat().st_mtime > MAKING_SECONDS
    except OSError:  # it ended in order as we looked, or is another user's
        return False


def remove_when_free(path: Path, deadline: Deadline) -> bool:
    """Remove the lock file of a holder that died, once nobody holds it; by the deadline, or not at all.

    Returns whether it is gone.
    """
    while not deadline.expired:
        try:
            descriptor = _opened(path)
        except FileNotFoundError:
            return True
        except PermissionError:
            return False
        try:
            # What it says stays as it is: whoever looks meanwhile waits for the dead holder's end.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_held(descriptor, path)
            return True
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        except OSError:  # it is not ours to remove, as in a sticky folder, or to lock, as on NFS
            return False
        finally:
            os.close(descriptor)
    return False


def _opened(path: Path) -> int:
    """Open a lock file to lock it; for writing where that is allowed, as NFS wants it (flock(2))."""
    try:
        return os.open(path, os.O_RDWR | _CAREFULLY)
    except PermissionError:
        return os.open(path, os.O_RDONLY | _CAREFULLY)
