"""The companions of a composer: they clear what it had when it is gone.

`python -m composer.store.reaper run FOLDER` ends the VMs of a run, whose folder that is;
`... work DISK LOCK` removes what lies beside a disk that was worked on; LOCK is the descriptor of its lock;
`... driver ROOT` removes the state of the composer's libvirt driver.  A pipe from the composer is stdin.
libvirt starts QEMU with -no-shutdown, so that even a helper that has powered itself off leaves a process
behind, and there is no daemon that would notice.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from composer.deadline import Deadline
from composer.store.locks import remove_held, remove_when_free
from composer.store.runs import Run, end_driver
from composer.store.work import clear_folders, end_users, lock_path

# A QEMU that libvirt was about to start as its composer died appears a moment later.
_QUIET_SECONDS = 1.0
_LONGEST_SECONDS = 10.0
_POLL_SECONDS = 0.05


def main() -> None:
    """Wait for the end of stdin, then clear what the composer left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kind, path = sys.argv[1], Path(sys.argv[2])
    # A composer that leaves a block in order says so; one that dies cannot.
    died = not sys.stdin.buffer.read()
    if kind == "driver":
        _until_quiet(lambda: end_driver(path))
    elif kind == "run":
        run = Run(path)
        if run.path.exists() and not run.kept:
            _until_quiet(run.end_vms)
            run.clear()
    else:
        # We inherited the lock, and so did those who end its VMs.
        if died:
            end_users(path)
        clear_folders(path)
        lock = int(sys.argv[3])
        if died:
            os.close(lock)
            remove_when_free(lock_path(path), Deadline.after(_LONGEST_SECONDS))
        else:  # the composer would, but may be killed before that
            remove_held(lock, lock_path(path))


def _until_quiet(end: Callable[[], bool]) -> None:
    longest, quiet = Deadline.after(_LONGEST_SECONDS), Deadline.after(_QUIET_SECONDS)
    while not (quiet.expired or longest.expired):
        if end():
            quiet = Deadline.after(_QUIET_SECONDS)
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main()
