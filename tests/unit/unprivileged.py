"""Something done as a user without rights, where root itself may do anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def as_nobody(folder: Path, act: Callable[[], None]) -> None:
    """Do something in a folder as a user without rights; as ourselves, where we are not root."""
    inside = os.open(folder, os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.fchdir(inside)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            act()
            code = 0
        finally:
            os._exit(code)
    os.close(inside)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
