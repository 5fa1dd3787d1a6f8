"""The companion of a running job: ends the job's VM when the composer is gone, whatever killed it.

`python -m composer.store.reaper FOLDER`, with a pipe from the composer as stdin.  libvirt starts QEMU
with -no-shutdown, so that even a helper that has powered itself off leaves a process behind, and there
is no daemon that would notice.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from composer.deadline import Deadline
from composer.store.runs import Run

# A QEMU that libvirt was about to start as its composer died appears a moment later.
_QUIET_SECONDS = 1.0
_LONGEST_SECONDS = 10.0
_POLL_SECONDS = 0.05


def main() -> None:
    """Wait for the end of stdin, then clear what the composer left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = Run(Path(sys.argv[1]))
    while sys.stdin.buffer.read(1):
        pass
    if not run.path.exists() or run.kept:
        return
    longest, quiet = Deadline.after(_LONGEST_SECONDS), Deadline.after(_QUIET_SECONDS)
    while not (quiet.expired or longest.expired):
        if run.end_vms():
            quiet = Deadline.after(_QUIET_SECONDS)
        time.sleep(_POLL_SECONDS)
    run.clear()


if __name__ == "__main__":
    main()
