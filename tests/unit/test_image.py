"""Disk images through qemu-img: what counts as written, and what QEMU is let open."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.disk import image
from composer.errors import ComposerError, ToolFailed
from tests.faults.images import same, written

CHANCE = "images"


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Make an overlay on a disk on a base, each with data of its own."""
    chance = random.Random(CHANCE)
    base = written(tmp_path / "base.qcow2", None, chance)
    disk = written(tmp_path / "disk.qcow2", base, chance)
    return written(tmp_path / "overlay.qcow2", disk, chance), disk, base


def test_a_file_system_without_direct_transfers_is_known() -> None:
    """As tmpfs was until Linux 6.6: qemu-img would refuse at the very end of an update."""
    assert not image.takes_direct_io(Path("/proc/version"))


def test_a_node_names_its_files_and_no_others(tmp_path: Path) -> None:
    one, two = tmp_path / "one, 'x'", tmp_path / "ü\n"
    said = json.loads(image.node(one, [two]).removeprefix("json:"))
    assert said["file"]["filename"] == str(one)
    assert said["backing"]["file"]["filename"] == str(two)
    assert said["backing"]["backing"] is None


@pytest.mark.parametrize("merges", [False, True])
def test_a_new_disk_holds_what_the_overlay_shows(
    chain: tuple[Path, Path, Path], tmp_path: Path, deadline: Deadline, merges: bool
) -> None:
    overlay, disk, base = chain
    new = tmp_path / "new.qcow2"
    before = [path.read_bytes() for path in chain]
    if merges:
        image.merge(overlay, disk, [base], new, deadline)
    else:
        image.flatten(overlay, [disk, base], new, deadline)
    image.check(new, "it", deadline)
    assert same(overlay, new)
    image.compare(overlay, [disk, base], new, [base] if merges else [], deadline)
    assert [path.read_bytes() for path in chain] == before


def leaking(disk: Path) -> Path:
    """Let a disk have a cluster that nothing names, as a QEMU that was killed leaves one."""
    raw = bytearray(disk.read_bytes())
    (table,) = struct.unpack_from(">Q", raw, 48)
    (block,) = struct.unpack_from(">Q", raw, table)
    free = len(raw) // 2**16
    struct.pack_into(">H", raw, block + 2 * free, 1)
    disk.write_bytes(bytes(raw) + bytes(2**16))
    found = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disk], check=False, capture_output=True)
    assert found.returncode == 3
    return disk


@pytest.mark.parametrize("merges", [False, True])
def test_leaks_that_a_disk_has_already_hinder_nothing(
    chain: tuple[Path, Path, Path], tmp_path: Path, deadline: Deadline, merges: bool
) -> None:
    overlay, disk, base = chain
    leaking(disk)
    new = tmp_path / "new.qcow2"
    if merges:
        image.merge(overlay, disk, [base], new, deadline)
    else:
        image.flatten(overlay, [disk, base], new, deadline)
    image.check(new, "it", deadline)
    assert same(overlay, new)


def test_leaks_after_our_own_write_are_damage(chain: tuple[Path, Path, Path], deadline: Deadline) -> None:
    with pytest.raises(ComposerError, match="finds the new disk damaged"):
        image.check(leaking(chain[2]), "the new disk", deadline)


def test_a_file_that_is_larger_than_its_virtual_size_can_be_merged(
    tmp_path: Path, deadline: Deadline
) -> None:
    """As snapshots that were deleted leave it."""
    chance = random.Random(CHANCE)
    base = written(tmp_path / "base.qcow2", None, chance)
    disk = written(tmp_path / "disk.qcow2", base, chance)
    fill = ["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 60M", str(disk)]
    snapshot = ["qemu-img", "snapshot"]
    for argv in (fill, [*snapshot, "-c", "s", str(disk)], fill, [*snapshot, "-d", "s", str(disk)]):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    assert disk.stat().st_size > 2 * 60 * 2**20
    overlay = written(tmp_path / "overlay.qcow2", disk, chance)
    image.merge(overlay, disk, [base], tmp_path / "new.qcow2", deadline)
    assert same(overlay, tmp_path / "new.qcow2")


def test_a_word_on_stderr_is_a_failure(
    chain: tuple[Path, Path, Path], tmp_path: Path, deadline: Deadline, fake_tool: Callable[[str, str], Path]
) -> None:
    real = subprocess.run(["which", "qemu-img"], check=True, capture_output=True, text=True).stdout.strip()
    fake_tool(
        "qemu-img", f'[ "$1" != convert ] || echo "Failed to flush the L2 table cache" >&2; exec {real} "$@"'
    )
    with pytest.raises(ToolFailed, match="Failed to flush"):
        image.flatten(chain[0], chain[1:], tmp_path / "new.qcow2", deadline)


def test_names_in_headers_are_not_followed(tmp_path: Path, deadline: Deadline) -> None:
    """A disk behind a link: QEMU by itself would take the base that lies beside the link."""
    chance = random.Random(CHANCE)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    base = written(tmp_path / "a/base.qcow2", None, chance)
    other = written(tmp_path / "b/base.qcow2", None, chance)
    disk = written(tmp_path / "a/disk.qcow2", base, chance)
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", disk], check=True
    )
    (tmp_path / "b/disk.qcow2").symlink_to(disk)
    new = tmp_path / "new.qcow2"
    image.flatten(tmp_path / "b/disk.qcow2", [base], new, deadline)
    assert same(disk, new)
    assert not same(other, base)
