"""How much a qcow2 image maps, read off its tables: many of its entries may name one and the same cluster.

Such an image is small, and becomes large when it is copied.  By docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

from composer.deadline import Deadline
from composer.disk.qcow2 import Header, read_header
from composer.errors import BadInput

# Bits 9 to 55 of an entry: where an L2 table or a cluster lies.
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_READS_ZERO = 1
# An entry that maps nothing has neither.
_MAPS = _OFFSET | _COMPRESSED


def mapped_bytes(path: Path, deadline: Deadline) -> int:
    """Return how many bytes of an image's virtual size its own tables map; a cluster counts each time.

    Raises BadInput as `read_header`, and where the image is cut off; DeadlineExpired for tables that take too
    long to read.
    """
    header = read_header(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        # QEMU takes what lies up to a cluster behind the end for good (qcow2_inc_refcounts_imrt).
        end = size + (1 << header.cluster_bits)
        mapped: dict[int, int] = {}
        clusters = 0
        for entry in _entries(os.pread(descriptor, header.l1_size * 8, header.l1_offset)):
            if table := entry & _OFFSET:
                if table not in mapped:
                    deadline.check(f"the tables of {path}")
                    raw = os.pread(descriptor, 1 << header.cluster_bits, table)
                    mapped[table], highest = _mapped_in(raw, header)
                    if table >= size or highest >= end:
                        raise BadInput(f"{path} is cut off: it names clusters that lie behind its end")
                clusters += mapped[table]
        return min(clusters << header.cluster_bits, header.size)
    finally:
        os.close(descriptor)


def read_at(layers: Sequence[Path], offset: int, length: int) -> bytes | None:
    """Return bytes of a disk that lie in one cluster; ``layers`` are its file and those below, nearest first.

    None where only QEMU can tell them: compressed clusters, and those with subclusters.  Raises BadInput
    as `read_header`, and where the disk is cut off.
    """
    for path in layers:
        header = read_header(path)
        if header.extended_l2:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            entry = _entry_of(descriptor, header, offset)
            if entry & _COMPRESSED:
                return None
            if entry & _READS_ZERO:
                return bytes(length)
            if cluster := entry & _OFFSET:
                raw = os.pread(descriptor, length, cluster + offset % (1 << header.cluster_bits))
                if not raw:
                    raise BadInput(f"{path} is cut off: what it has at byte {offset} lies behind its end")
                return raw.ljust(length, b"\0")
        finally:
            os.close(descriptor)
    return bytes(length)


def _entry_of(descriptor: int, header: Header, offset: int) -> int:
    """Return the L2 entry of the cluster that has the byte ``offset`` of a disk, 0 where there is none."""
    cluster = offset >> header.cluster_bits
    above, index = divmod(cluster, (1 << header.cluster_bits) // 8)
    if above >= header.l1_size:
        return 0
    table = _entry_at(descriptor, header.l1_offset + above * 8) & _OFFSET
    return _entry_at(descriptor, table + index * 8) if table else 0


def _entry_at(descriptor: int, place: int) -> int:
    return int.from_bytes(os.pread(descriptor, 8, place), "big")


def _entries(raw: bytes) -> array[int]:
    entries = array("Q", raw[: len(raw) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def _mapped_in(raw: bytes, header: Header) -> tuple[int, int]:
    """Return how many clusters an L2 table maps, and where the last of those that are not compressed lies."""
    if not raw.strip(b"\0"):
        return 0, 0
    # With extended entries every other one is a bitmap of subclusters.
    entries = _entries(raw)[:: 2 if header.extended_l2 else 1]
    highest = max((entry & _OFFSET for entry in entries if not entry & _COMPRESSED), default=0)
    return sum(1 for entry in entries if entry & _MAPS), highest
