"""Disks for a QEMU that may not open their files any more: they are handed over by descriptor.

libvirt has a way for that too (virDomainFDAssociate), but in 9.0 not for disks that come later (Red Hat bug
2193315).  So QEMU's monitor is used directly; libvirt does not know of these disks, and need not,
for the VM ends with its job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from composer.deadline import Deadline
from composer.helper.domain import Backing, Disk, layers

# Runs a command of QEMU's monitor, with arguments and descriptors; returns what that returned.
Monitor = Callable[[str, dict[str, Any], Sequence[int]], Any]
_POLL_SECONDS = 0.05
# Where scsi-hd goes (domain.xml.j2), and what libvirt gives its own disks (disk.xml.j2).
_DEVICE = {
    "driver": "scsi-hd",
    "bus": "scsi0.0",
    "channel": 0,
    "scsi-id": 0,
    "werror": "stop",
    "rerror": "stop",
}
_FIRST_SET = 1000


def attach(monitor: Monitor, disk: Disk) -> None:
    """Give a running QEMU a disk, and the files below it to read."""
    below: str | None = None
    for number, layer in reversed(list(enumerate(layers(disk.backing), 1))):
        below = _add(monitor, disk, number, layer, below, (os.O_RDONLY,))
    modes = (os.O_RDONLY,) if disk.readonly else (os.O_RDONLY, os.O_RDWR)
    node = _add(monitor, disk, 0, Backing(disk.path, disk.format), below, modes)
    device = {**_DEVICE, "lun": _lun(disk), "drive": node, "id": _device(disk), "serial": disk.serial}
    monitor("device_add", {**device, "device_id": disk.serial, "write-cache": "on"}, ())


def detach(monitor: Monitor, disk: Disk, deadline: Deadline) -> None:
    """Take a disk away again; on return QEMU has none of its files open."""
    monitor("device_del", {"id": _device(disk)}, ())
    while any(block.get("qdev") == _device(disk) for block in monitor("query-block", {}, ())):
        deadline.check(f"{disk.path.name} to be released")
        time.sleep(_POLL_SECONDS)
    for number in range(len(list(layers(disk.backing))) + 1):
        node = _node(disk, number)
        monitor("blockdev-del", {"node-name": node}, ())
        monitor("blockdev-del", {"node-name": f"{node}-file"}, ())
        monitor("remove-fd", {"fdset-id": _set(disk, number)}, ())


def _device(disk: Disk) -> str:
    return f"{_node(disk, 0)}-device"


def _node(disk: Disk, number: int) -> str:
    """Return QEMU's name of a disk's file (0) or of one below it."""
    return f"composer-{disk.device}" + (f"-{number}" if number else "")


def _lun(disk: Disk) -> int:
    return ord(disk.device[-1]) - ord("a")


def _set(disk: Disk, number: int) -> int:
    """Return the number of the set of descriptors of a disk's file (0) or of one below it."""
    return _FIRST_SET + 100 * _lun(disk) + number


def _add(
    monitor: Monitor, disk: Disk, number: int, layer: Backing, below: str | None, modes: tuple[int, ...]
) -> str:
    """Hand over a file, opened in each of some modes, and make QEMU's nodes of it; return the upper one."""
    node, handed = _node(disk, number), _set(disk, number)
    for mode in modes:
        descriptor = os.open(layer.path, mode | os.O_CLOEXEC)
        try:
            monitor("add-fd", {"fdset-id": handed}, (descriptor,))
        finally:
            os.close(descriptor)
    readonly = os.O_RDWR not in modes
    common = {
        "read-only": readonly,
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": disk.cache == "unsafe"},
    }
    file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{handed}"}
    monitor("blockdev-add", {**common, **file}, ())
    form: dict[str, Any] = {"driver": layer.format, "node-name": node, "file": f"{node}-file"}
    if layer.format == "qcow2":
        form["backing"] = below
    if not readonly:
        form["detect-zeroes"] = "unmap"
    monitor("blockdev-add", {**common, **form}, ())
    return node
