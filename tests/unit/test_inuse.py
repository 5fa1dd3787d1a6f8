"""Disks that a VM has open, seen by QEMU's own locks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.disk.inuse import check_unused, kept_from_vms
from composer.errors import Busy
from tests.unit.unprivileged import as_nobody


@contextmanager
def opened(disk: Path, options: str = "") -> Iterator[None]:
    """Have a QEMU hold a qcow2 disk for the block, which writes nothing to it."""
    pidfile = disk.with_name("pid")
    argv = ["qemu-storage-daemon", "--blockdev", f"driver=file,filename={disk},node-name=file{options}",
            "--blockdev", f"driver=qcow2,file=file,node-name=disk{options}",
            "--pidfile", str(pidfile)]  # fmt: skip
    with subprocess.Popen(argv) as process:
        try:
            began = time.monotonic()
            while not pidfile.exists():  # it is written once all is open
                assert process.poll() is None
                assert time.monotonic() - began < 20
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    made = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "8M"], check=True)
    return made


@pytest.mark.parametrize("options", ["", ",read-only=on"])
def test_a_disk_that_is_open(disk: Path, options: str) -> None:
    check_unused(disk)
    before = disk.stat().st_mtime_ns
    with opened(disk, options), pytest.raises(Busy, match="in use by a running VM") as caught:
        check_unused(disk, patience=0)
    assert disk.stat().st_mtime_ns == before
    assert caught.value.hint
    check_unused(disk)


def test_a_disk_that_is_kept_from_vms_is_opened_by_none(disk: Path) -> None:
    reads = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", str(disk)]
    writes = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(disk)]
    for argv in (reads, writes):
        with kept_from_vms(disk):
            refused = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "Failed to get" in refused.stderr + refused.stdout
        assert "lock" in refused.stderr + refused.stdout
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("options", ["", ",read-only=on"])
def test_a_disk_that_a_vm_has_is_not_kept_from_it(disk: Path, options: str) -> None:
    with opened(disk, options), pytest.raises(Busy, match="in use by a running VM"), kept_from_vms(disk):
        raise AssertionError


def test_a_disk_that_is_not_there_is_kept_from_nobody(tmp_path: Path) -> None:
    with kept_from_vms(tmp_path / "none"):
        pass


def test_a_base_of_a_disk_that_is_open(disk: Path) -> None:
    overlay = disk.with_name("overlay.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, overlay], check=True
    )
    with opened(overlay):
        with pytest.raises(Busy):
            check_unused(disk, patience=0)
        check_unused(disk, readers=False, patience=0)
        with pytest.raises(Busy):
            check_unused(overlay, readers=False, patience=0)


def test_one_who_is_about_to_let_go_is_waited_for(disk: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        with opened(disk):
            asked = thread.submit(check_unused, disk, patience=20)
            time.sleep(0.2)
            assert not asked.done()
        asked.result(20)


def test_a_disk_that_we_may_not_read(tmp_path: Path) -> None:
    (tmp_path / "disk").touch(0o000)
    tmp_path.chmod(0o755)
    as_nobody(tmp_path, lambda: check_unused(Path("disk")))


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    check_unused(tmp_path / "none.qcow2")
