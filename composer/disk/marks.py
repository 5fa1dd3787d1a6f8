"""By what a disk is told from others, whatever was written to it: its size and its partition table."""

from __future__ import annotations

import uuid
from pathlib import Path

from composer.disk.manifest import NO_TABLE, Manifest, Marks
from composer.disk.qcow2 import check_chain
from composer.disk.tables import read_at
from composer.errors import BadInput
from composer.recipe.values import show_size

# UEFI specification 2.10, 5.3.2: the header is in the second sector, the disk's GUID at byte 56 of it.
_SECTOR, _SIGNATURE, _GUID = 512, b"EFI PART", slice(56, 72)


def marks_of(disk: Path) -> Marks:
    """Read them off a disk; BadInput where `check_chain` refuses it, or where it is cut off."""
    checked = check_chain(disk)
    sector = read_at((disk, *checked.bases), _SECTOR, _SECTOR)
    if sector is None:
        table = None
    elif sector.startswith(_SIGNATURE):
        table = str(uuid.UUID(bytes_le=sector[_GUID]))
    else:
        table = NO_TABLE
    return Marks(size=checked.header.size, table=table)


def check_marks(disk: Path, manifest: Manifest) -> None:
    """Raise BadInput where a manifest is another disk's, or where its disk was cut off."""
    known = manifest.marks
    if known is None:  # of format 1
        return
    found = marks_of(disk)
    if found.size < known.size:
        why = f"the disk has {show_size(found.size)}, and that of its manifest {show_size(known.size)}"
    elif None not in (found.table, known.table) and found.table != known.table:
        why = f"the partition table is {found.table}, and that of its manifest {known.table}"
    else:
        return
    raise BadInput(
        f"the manifest beside {disk} is another disk's, or the disk was cut off: {why}",
        hint="put the disk's own manifest beside it, or build it anew: composer build RECIPE --force",
    )
