"""The companion of a running job: clears what the job had when the composer is gone.

`python -m composer.store.reaper run FOLDER ROOT` ends the VMs of a run, whose folder that is;
`... work DISK ROOT LOCK` removes what lies beside a disk that was worked on; LOCK is the descriptor of its
lock.  ROOT is where the composer's libvirt driver kept its state, and a pipe from the composer is stdin.
libvirt starts QEMU with -no-shutdown, so that even a helper that has powered itself off leaves a process
behind, and there is no daemon that would notice.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from composer.deadline import Deadline
from composer.store.locks import remove_when_free
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
    kind, path, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # A composer that ends in order says so; one that dies cannot.
    died = not sys.stdin.buffer.read()
    if kind == "run":
        run = Run(path)
        # In order, the composer has ended its VM; its driver is still in use.
        if run.path.exists() and not run.kept:
            _clear(run, root if died else None)
    else:
        # We inherited the lock, and so did those who end its VMs.
        if died:
            end_users(path)
        clear_folders(path)
        if died:
            os.close(int(sys.argv[4]))
            remove_when_free(lock_path(path), Deadline.after(_LONGEST_SECONDS))
    if died:
        end_driver(root)


def _clear(run: Run, root: Path | None) -> None:
    longest, quiet = Deadline.after(_LONGEST_SECONDS), Deadline.after(_QUIET_SECONDS)
    while not (quiet.expired or longest.expired):
        ended = [run.end_vms(), root is not None and end_driver(root)]
        if any(ended):
            quiet = Deadline.after(_QUIET_SECONDS)
        time.sleep(_POLL_SECONDS)
    run.clear()


if __name__ == "__main__":
    main()
