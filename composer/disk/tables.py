"""How much a qcow2 image maps, read off its tables: many of its entries may name one and the same cluster.

Such an image is small, and becomes large when it is copied.  By docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import sys
from array import array
from pathlib import Path

from composer.deadline import Deadline
from composer.disk.qcow2 import Header, read_header

# Bits 9 to 55 of an entry: where an L2 table or a cluster lies.
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
# An entry that maps nothing has neither.
_MAPS = _OFFSET | _COMPRESSED


def mapped_bytes(path: Path, deadline: Deadline) -> int:
    """Return how many bytes of an image's virtual size its own tables map; a cluster counts each time.

    Raises BadInput as `read_header`, DeadlineExpired for tables that take too long to read.
    """
    header = read_header(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mapped: dict[int, int] = {}
        clusters = 0
        for entry in _entries(os.pread(descriptor, header.l1_size * 8, header.l1_offset)):
            if table := entry & _OFFSET:
                if table not in mapped:
                    deadline.check(f"the tables of {path}")
                    mapped[table] = _mapped_in(os.pread(descriptor, 1 << header.cluster_bits, table), header)
                clusters += mapped[table]
        return min(clusters << header.cluster_bits, header.size)
    finally:
        os.close(descriptor)


def _entries(raw: bytes) -> array[int]:
    entries = array("Q", raw[: len(raw) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def _mapped_in(raw: bytes, header: Header) -> int:
    """Return how many clusters an L2 table maps."""
    if not raw.strip(b"\0"):
        return 0
    # With extended entries every other one is a bitmap of subclusters.
    entries = _entries(raw)[:: 2 if header.extended_l2 else 1]
    return sum(1 for entry in entries if entry & _MAPS)
