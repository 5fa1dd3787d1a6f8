"""What needs root to be tried: the product as root, and a file system that fills up."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from composer.compose.target import overlay_target
from composer.compose.workshop import ACCOUNT
from tests.faults.experiment import Length
from tests.vm.ground import Repo
from tests.vm.place import Place, helper_of

pytestmark = [
    pytest.mark.asroot,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
]


@pytest.fixture
def small(place: Place) -> Iterator[Path]:
    """A file system of 1 GiB."""
    folder = place.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1024m,mode=0755", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_update_and_verify_as_root(place: Place, repo: Repo, fresh: Path, length: Length) -> None:
    # What the check leaves out: a boot, which test_flow.py has as a user, and the transport of root alone.
    is_long = length != "check"
    updated = place.composer("update", fresh, *(["--transport", "virtiofs"] if is_long else []))
    assert updated.code == 0, updated.stderr
    assert repo.second[:12] in updated.stdout
    place.assert_cleared(fresh.parent)
    if not is_long:
        return
    verified = place.composer("verify", fresh)
    assert verified.code == 0, verified.stderr
    assert repo.second[:12] in verified.stdout


def test_roots_qemu_has_no_rights_of_root_once_a_guest_runs(place: Place, fresh: Path) -> None:
    """With the files of a disk and of what is below it, which it gets by descriptor."""
    account = pwd.getpwnam(ACCOUNT)
    workshop = place.workshop()
    target = overlay_target(fresh.with_name("overlay.qcow2"), fresh, workshop.deadline)
    with helper_of(place, fresh) as helper:
        (pid,) = place.qemu_pids()
        text = Path(f"/proc/{pid}/status").read_text()
        status = {
            name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())
        }
        assert status["Uid"] == [str(account.pw_uid)] * 4
        assert status["Gid"] == [str(account.pw_gid)] * 4
        assert int(status["CapEff"][0], 16) == 0
        assert status["Seccomp"] == ["2"]
        helper.machine.attach(target)
        read = helper.shell.run(["blkid", "-o", "value", "-s", "TYPE"], deadline=workshop.deadline)
        assert b"ext4" in read.stdout
        helper.machine.detach(target, workshop.deadline)
        assert not any("qcow2" in str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir())


def test_full_host_disk_ends_in_a_clear_error(place: Place, repo: Repo, recipe: Path, small: Path) -> None:
    """Enough room at the start; then somebody else fills the disk while the pull runs."""

    def fill() -> None:
        began = time.monotonic()
        while not place.qemu_pids() and time.monotonic() - began < 60:
            time.sleep(0.1)
        room = os.statvfs(small)
        with (small / "filler").open("wb") as filler:
            filler.write(b"x" * (room.f_bavail * room.f_frsize - 60 * 2**20))

    filler = threading.Thread(target=fill)
    filler.start()
    built = place.composer("build", recipe, "-o", small / "full.qcow2")
    filler.join()
    assert built.code == 1
    assert "no space left" in built.stderr
    assert "Traceback" not in built.stderr
    assert [path.name for path in small.iterdir()] == ["filler"]
    assert place.qemu_pids() == []


def test_too_little_room_is_told_before_a_vm_starts(
    place: Place, repo: Repo, recipe: Path, small: Path
) -> None:
    with (small / "filler").open("wb") as filler:
        filler.write(b"x" * (900 * 2**20))
    built = place.composer("build", recipe, "-o", small / "full.qcow2")
    assert built.code == 2
    assert "needs" in built.stderr
    assert "helper" not in built.phases()
    assert [path.name for path in small.iterdir()] == ["filler"]
