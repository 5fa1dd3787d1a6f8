"""Disk images through qemu-img: made, overlaid, flattened, compared, checked.

QEMU is told each file that it may open, with its format (`node`): the names in the headers of images are not
followed, so it opens what the gate (qcow2.py) has checked and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.deadline import Deadline
from composer.disk.qcow2 import read_header
from composer.errors import ComposerError, ToolFailed
from composer.process import Finished, Limits, run
from composer.store.folders import copied

# qcow2's tables, for each cluster: 8 bytes of an L2 entry, 16 if it is extended, and 8 of a reference count.
_TABLES = 24
_SMALL = 64 * 2**20


def taken(path: Path) -> int:
    """Return the bytes that a file takes on the host's file system; none where there is no file."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def node(path: Path, below: Sequence[Path] = ()) -> str:
    """Return a name for QEMU that stands for an image and the files below it, nearest first, and no others.

    All are qcow2.  Without files below it the image is opened alone, whatever its header names.
    """
    opened: dict[str, Any] | None = None
    for file in (*reversed(below), path):
        opened = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(file.absolute())},
            "backing": opened,
        }
    return f"json:{json.dumps(opened)}"


def create(path: Path, size: int, deadline: Deadline) -> None:
    """Make an empty qcow2 disk of ``size`` bytes."""
    options = ["-f", "qcow2", "-o", "lazy_refcounts=off"]
    _qemu_img(["create", "-q", *options, str(path), str(size)], deadline)


def create_overlay(path: Path, base: Path, deadline: Deadline) -> None:
    """Make an overlay: what is written goes into ``path``, ``base`` stays as it is."""
    size = read_header(base).size
    # -u: with the size known, the base need not be opened, nor what it names.
    named = ["-u", "-F", "qcow2", "-b", str(base.absolute())]
    _qemu_img(["create", "-q", "-f", "qcow2", *named, str(path), str(size)], deadline)


def flatten(overlay: Path, below: Sequence[Path], target: Path, deadline: Deadline) -> None:
    """Write an overlay and the files below it as one disk that stands alone; holes take no room in it.

    Raises ToolFailed or OSError if any of it may not have reached the disk.
    """
    create(target, read_header(overlay).size, deadline)
    caching = "none" if takes_direct_io(overlay) else "writeback"
    options = ["-f", "qcow2", "-O", "qcow2", "-T", caching, "-t", caching, "-W", "-n", "--target-is-zero"]
    with _synced(target):
        argv = ["convert", *options, node(overlay, below), node(target)]
        _qemu_img(argv, deadline, _largest(target, overlay, *below))


def merge(overlay: Path, disk: Path, bases: Sequence[Path], target: Path, deadline: Deadline) -> None:
    """Write ``overlay`` and the ``disk`` below it as one disk on the same base, the first of ``bases``.

    `qemu-img convert -B` would drop what is in the middle one: it copies what the topmost has (QEMU 7.2,
    convert_iteration_sectors).  Raises as `flatten`.
    """
    with target.open("xb"):
        pass
    with _synced(target):
        copied(disk, target)
        largest = _largest(target, overlay)
        # Leaks that the disk had already are no fault of this write, and must not hide those that would be.
        repair = ["qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", node(target)]
        run(repair, deadline=deadline, limits=Limits(file=largest))  # it says on stderr what it repairs
        _qemu_img(["commit", "-q", "-f", "qcow2", "-d", node(overlay, [target, *bases])], deadline, largest)


def compare(
    overlay: Path, below: Sequence[Path], new: Path, bases: Sequence[Path], deadline: Deadline
) -> None:
    """Raise ComposerError if a new disk on ``bases`` does not hold what an overlay on ``below`` shows."""
    argv = ["compare", "-q", "-f", "qcow2", "-F", "qcow2", node(overlay, below), node(new, bases)]
    try:
        _qemu_img(argv, deadline)
    except ToolFailed as error:
        detail = error.stderr[-2000:] or None
        raise ComposerError("the new disk does not hold what was written to it", detail=detail) from error


def check(path: Path, what: str, deadline: Deadline) -> None:
    """Raise ComposerError if an image's own tables are damaged, or it has clusters that nothing names.

    Such leaks are what is left of a write that QEMU could not finish; not all of its tools report that.
    """
    try:
        _qemu_img(["check", "-q", "-f", "qcow2", node(path)], deadline)
    except ToolFailed as error:
        raise ComposerError(f"qemu-img check finds {what} damaged", detail=error.stderr[-2000:]) from error


def takes_direct_io(path: Path) -> bool:
    """Whether the file system of a file takes transfers past the page cache; tmpfs does since Linux 6.6."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _largest(target: Path, *read: Path) -> int:
    """Return the bytes that a file may have once what others hold was written to it."""
    header = read_header(target)
    tables = (header.size >> header.cluster_bits) * _TABLES
    return (
        max(header.size, target.stat().st_size) + tables + sum(path.stat().st_size for path in read) + _SMALL
    )


def _qemu_img(argv: Sequence[str], deadline: Deadline, largest: int = _SMALL) -> Finished:
    """Run qemu-img, which may write ``largest`` bytes to a file; ToolFailed if it complains, too.

    QEMU 7.2's convert ends with 0 after "Failed to flush the L2 table cache", and the data is lost.
    """
    done = run(["qemu-img", *argv], deadline=deadline, limits=Limits(file=largest))
    if done.stderr.strip():
        raise ToolFailed(["qemu-img", *argv], 0, done.stderr.decode("utf-8", "replace"))
    return done


@contextmanager
def _synced(path: Path) -> Iterator[None]:
    """Have what the block writes into a file reach the disk; OSError if any of it could not.

    The kernel reports a failed write-back once to each descriptor that was open by then (errseq_t of
    Documentation/core-api/errseq.rst): one that is opened later, or qemu-img's own, may hear nothing of it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
