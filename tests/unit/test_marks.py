"""A manifest beside another disk, or beside one that was cut off, is found out without a VM."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from composer.compose.update import known_disk
from composer.deadline import Deadline
from composer.disk.manifest import Manifest, Marks, load_manifest, manifest_path, publish_manifest
from composer.disk.marks import marks_of
from composer.disk.tables import mapped_bytes
from composer.errors import BadInput

Make = Callable[..., Manifest]
GUID = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.DEVNULL)


def disk_of(path: Path, guid: uuid.UUID = GUID, size: str = "8M", options: str = "cluster_size=64k") -> Path:
    """Make a disk whose second sector is as that of a GPT."""
    raw = path.with_suffix(".sector")
    raw.write_bytes(b"EFI PART".ljust(56, b"\1") + guid.bytes_le)
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    command = f"write -s {raw} 512 512"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    "options", ["cluster_size=64k", "cluster_size=512", "cluster_size=2M", "compat=0.10"]
)
def test_what_a_disk_is_known_by(tmp_path: Path, options: str) -> None:
    disk = disk_of(tmp_path / "a.qcow2", options=options)
    assert marks_of(disk) == Marks(size=8 * 2**20, table=str(GUID))


def test_the_marks_of_an_overlay_are_those_of_its_base(tmp_path: Path) -> None:
    disk_of(tmp_path / "a.qcow2")
    overlay = tmp_path / "b.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2", overlay, "16M")
    assert marks_of(overlay) == Marks(size=16 * 2**20, table=str(GUID))


def test_no_table_and_one_that_only_qemu_can_read(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "none.qcow2", "8M")
    assert marks_of(tmp_path / "none.qcow2").table == "none"
    disk = disk_of(tmp_path / "a.qcow2")
    qemu_img("convert", "-c", "-O", "qcow2", disk, tmp_path / "packed.qcow2")
    assert marks_of(tmp_path / "packed.qcow2").table is None


@pytest.fixture
def disk(tmp_path: Path, manifest_of: Make) -> Path:
    path = disk_of(tmp_path / "disk.qcow2")
    publish_manifest(path, manifest_of(path).model_copy(update={"marks": marks_of(path)}))
    return path


def test_a_disk_that_was_written_to_or_grew_is_the_same(disk: Path) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 1M 1M", disk], check=True, stdout=subprocess.DEVNULL
    )
    qemu_img("resize", "-q", disk, "16M")
    assert known_disk(disk) == load_manifest(disk)


def test_another_disk_of_the_same_layout(disk: Path) -> None:
    other = disk_of(disk.with_name("other.qcow2"), uuid.UUID(int=1))
    other.replace(disk)
    with pytest.raises(BadInput, match=r"is another disk's.*00000000-0000-0000-0000-000000000001") as caught:
        known_disk(disk)
    assert "--force" in (caught.value.hint or "")


def test_a_smaller_disk(disk: Path) -> None:
    qemu_img("resize", "-q", "--shrink", disk, "4M")
    with pytest.raises(BadInput, match=r"or the disk was cut off: the disk has 4.0 MiB"):
        known_disk(disk)


def test_a_manifest_of_the_former_format_is_taken(disk: Path, manifest_of: Make) -> None:
    manifest_path(disk).unlink()
    publish_manifest(disk, manifest_of(disk))
    assert known_disk(disk).marks is None


@pytest.mark.parametrize("left", [0x40000, 0x50000])
def test_a_disk_that_was_cut_off(disk: Path, deadline: Deadline, left: int) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 1M 1M", disk], check=True, stdout=subprocess.DEVNULL
    )
    os.truncate(disk, left)
    with pytest.raises(BadInput, match="is cut off"):
        mapped_bytes(disk, deadline)
    with pytest.raises(BadInput, match="cut off"):
        known_disk(disk)
