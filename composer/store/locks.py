"""Locks between composers: flock on a file that names its holder.

flock is released by the kernel when its holder dies, whatever kills it, so no lock is ever stale.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import Busy

_POLL_SECONDS = 0.1


def _holder(descriptor: int) -> str:
    """Describe who holds the lock, from what the holder wrote into it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(os.pread(descriptor, 4096, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(said["since"])))
        return f"pid {int(said['pid'])} on {said['host']!s:.64}, since {since}, for {said['purpose']!s:.128}"
    return "a process that did not say who it is"


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the path still names the file we opened; its last holder removed it otherwise."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


@contextmanager
def locked(path: Path, *, purpose: str, what: str, wait: Deadline | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` for the block.

    Raises Busy, naming the holder, when another has it and ``wait`` is None or has passed.  The file
    goes away with the lock, so nothing is left beside a user's disk.
    """
    descriptor = _acquire(path, what, wait)
    try:
        said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "purpose": purpose}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(said).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, what: str, wait: Deadline | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            if wait is None or wait.expired:
                raise Busy(
                    f"{what} is in use by another composer: {holder}",
                    hint="wait until it has ended, or end it",
                ) from None
            time.sleep(_POLL_SECONDS)
            continue
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file ``path`` now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
