"""The target disk as the helper gets it: a new one, or an overlay on one that there is."""

from __future__ import annotations

from pathlib import Path

from composer.deadline import Deadline
from composer.disk import image
from composer.disk.qcow2 import check_chain
from composer.helper.domain import Backing, Disk

# The steps in the guest look for it (lib.sh, disk_with).
SERIAL = "composer-target"
_DEVICE = "sdb"


def new_target(path: Path) -> Disk:
    """Describe an empty disk to be filled."""
    return Disk(path, "qcow2", SERIAL, _DEVICE)


def overlay_target(overlay: Path, disk: Path, deadline: Deadline) -> Disk:
    """Make ``overlay`` on ``disk`` and describe it, with all that is below ``disk``."""
    backing = chain_of(disk)
    image.create_overlay(overlay, disk, deadline)
    return Disk(overlay, "qcow2", SERIAL, _DEVICE, backing=backing)


def chain_of(disk: Path) -> Backing:
    """Return a disk and the files below it, as what an overlay stands on; all are checked first."""
    below: Backing | None = None
    for base in reversed(check_chain(disk).bases):
        below = Backing(base, "qcow2", below)
    return Backing(disk.absolute(), "qcow2", below)
