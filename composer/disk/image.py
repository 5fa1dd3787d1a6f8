"""Disk images through qemu-img: made, overlaid, flattened, checked; the format is always told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import ComposerError, ToolFailed
from composer.process import run
from composer.store.folders import copied


def taken(path: Path) -> int:
    """Return the bytes that a file takes on the host's file system; none where there is no file."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def create(path: Path, size: int, deadline: Deadline) -> None:
    """Make an empty qcow2 disk of ``size`` bytes."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off", str(path), str(size)],
        deadline=deadline)  # fmt: skip


def create_overlay(path: Path, base: Path, deadline: Deadline) -> None:
    """Make an overlay: what is written goes into ``path``, ``base`` stays as it is."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base.absolute()), str(path)],
        deadline=deadline)  # fmt: skip


def flatten(overlay: Path, target: Path, deadline: Deadline) -> None:
    """Write overlay and base as one disk that stands alone; what was trimmed takes no room in it."""
    caching = "none" if takes_direct_io(overlay) else "writeback"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-T", caching, "-t", caching, "-W",
         str(overlay), str(target)], deadline=deadline)  # fmt: skip


def takes_direct_io(path: Path) -> bool:
    """Whether the file system of a file takes transfers past the page cache; tmpfs does since Linux 6.6."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def merge(overlay: Path, disk: Path, target: Path, base: Path, deadline: Deadline) -> None:
    """Write ``overlay`` and the ``disk`` below it as one disk on ``base``, which is below that.

    `qemu-img convert -B` would drop what is in the middle one: it copies what the topmost has (QEMU 7.2,
    convert_iteration_sectors).
    """
    copied(disk, target)
    rename_base(target, str(base.absolute()), deadline)
    rename_base(overlay, str(target.absolute()), deadline)
    run(["qemu-img", "commit", "-q", "-f", "qcow2", "-d", str(overlay)], deadline=deadline)


def rename_base(path: Path, name: str, deadline: Deadline) -> None:
    """Have an overlay call the file below it so; what is in either stays as it is."""
    run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, str(path)],
        deadline=deadline)  # fmt: skip


def check(path: Path, deadline: Deadline) -> None:
    """Raise ComposerError where the image's own tables are damaged."""
    try:
        # 3: leaked clusters, which waste room and harm nothing.
        run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], deadline=deadline, ok=(0, 3))
    except ToolFailed as error:
        raise ComposerError(f"qemu-img check finds {path} damaged", detail=error.stderr[-2000:]) from error
