"""The companion of a running job: clears what the job had running when the composer is gone.

`python -m composer.store.reaper FOLDER PID`, with a pipe from the composer, whose pid that is, as stdin.
libvirt starts QEMU with -no-shutdown, so that even a helper that has powered itself off leaves a process
behind, and there is no daemon that would notice.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from composer.deadline import Deadline
from composer.store.runs import Run, driver_root

# A QEMU that libvirt was about to start as its composer died appears a moment later.
_QUIET_SECONDS = 1.0
_LONGEST_SECONDS = 10.0
_POLL_SECONDS = 0.05


def main() -> None:
    """Wait for the end of stdin, then clear what the composer left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run, composer = Run(Path(sys.argv[1])), int(sys.argv[2])
    while sys.stdin.buffer.read(1):
        pass
    if run.path.exists() and not run.kept:
        _clear(run)
    if os.getppid() != composer:  # it died; otherwise its root is still in use
        shutil.rmtree(driver_root(run.path.parent, composer), ignore_errors=True)


def _clear(run: Run) -> None:
    longest, quiet = Deadline.after(_LONGEST_SECONDS), Deadline.after(_QUIET_SECONDS)
    while not (quiet.expired or longest.expired):
        if run.end_vms():
            quiet = Deadline.after(_QUIET_SECONDS)
        time.sleep(_POLL_SECONDS)
    run.clear()


if __name__ == "__main__":
    main()
