"""Disk images through qemu-img."""

from __future__ import annotations

from pathlib import Path

from composer.disk.image import takes_direct_io


def test_a_file_system_without_direct_transfers_is_known() -> None:
    """As tmpfs was until Linux 6.6: qemu-img would refuse at the very end of an update."""
    assert not takes_direct_io(Path("/proc/version"))
