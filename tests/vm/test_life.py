"""Composers that are interrupted, killed, or in each other's way: nothing is lost or left behind."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer.disk.inuse import check_unused
from composer.errors import Busy
from tests.vm.ground import Repo
from tests.vm.place import Place


def content(disk: Path) -> str:
    return hashlib.sha256(disk.read_bytes()).hexdigest()


def wait_for_vm(place: Place, process: subprocess.Popen[str], but: int | None = None) -> None:
    began = time.monotonic()
    while not {*place.qemu_pids()} - {but}:
        assert process.poll() is None, "it ended before its VM started"
        assert time.monotonic() - began < 60
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_update_leaves_the_disk_and_no_vm(
    place: Place, fresh: Path, number: signal.Signals
) -> None:
    before = content(fresh)
    with place.started("update", fresh) as process:
        wait_for_vm(place, process)
        time.sleep(1)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert place.qemu_pids() == []
    place.assert_cleared()
    assert content(fresh) == before
    assert sorted(path.name for path in fresh.parent.iterdir()) == ["copy.qcow2", "copy.qcow2.manifest.json"]


class Typed:
    """A composer on a terminal, whose words come in by a pipe."""

    def __init__(self, place: Place, *words: str | Path) -> None:
        self._keyboard, terminal = pty.openpty()
        self.process = subprocess.Popen(
            place.argv(*words),
            env=place.environment,
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(terminal)
        self.said = ""

    def wait_for(self, text: str, seconds: float) -> None:
        assert self.process.stdout is not None
        began = time.monotonic()
        while text not in self.said:
            assert time.monotonic() - began < seconds, f"no {text!r} in {self.said[-2000:]}"
            readable, _, _ = select.select([self.process.stdout], [], [], 1)
            if readable:
                chunk = os.read(self.process.stdout.fileno(), 65536)
                assert chunk, f"it ended: {self.said[-2000:]}"
                self.said += chunk.decode("utf-8", "replace")

    def type(self, line: str) -> None:
        os.write(self._keyboard, f"{line}\n".encode())

    def end(self) -> int:
        rest, _ = self.process.communicate(timeout=60)
        self.said += rest.decode("utf-8", "replace")
        os.close(self._keyboard)
        return self.process.returncode


def test_failed_job_can_be_looked_into(place: Place, repo: Repo, fresh: Path) -> None:
    """--debug-shell and --keep-vm on a step that fails; then vm list, ssh, console, rm."""
    broken = Path(f"{fresh}.manifest.json")
    broken.write_text(broken.read_text().replace('"stateroot": "debian"', '"stateroot": "missing"'))
    typed = Typed(place, "update", fresh, "--keep-vm", "--debug-shell")
    typed.wait_for("a shell in the helper", 300)
    typed.wait_for("# ", 60)
    typed.type("cat /run/composer/job/data/stateroot; exit")
    assert typed.end() == 1
    assert "missing" in typed.said.partition("a shell in the helper")[2]
    assert "step 'deploy'" in typed.said
    assert "composer vm ssh" in typed.said
    try:
        (name,) = place.runs_left()
        listed = place.composer("vm", "list")
        assert name in listed.stdout
        assert "kept" in listed.stdout
        for _ in range(2):  # the second finds nothing of the first
            answered = place.composer("vm", "ssh", name, "--", "cat", "/run/composer/job/data/commit")
            assert answered.stdout == repo.second, answered.stderr
        shown = place.composer("vm", "console", name, "--no-follow")
        assert shown.code == 0
    finally:
        removed = [place.composer("vm", "rm", name) for name in place.runs_left()]
    assert [ran.code for ran in removed] == [0]
    assert place.qemu_pids() == []
    place.assert_cleared()


def companions(composer: int) -> list[int]:
    """Return the pids of a composer's reapers."""
    found = subprocess.run(
        ["pgrep", "-P", str(composer), "-f", "composer.store.reaper"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(pid) for pid in found.stdout.split()]


def test_killed_composer_is_cleared_up_after_within_seconds(place: Place, fresh: Path) -> None:
    """Without a next run: by its companion, though the guest is frozen."""
    with place.started("update", fresh) as process:
        wait_for_vm(place, process)
        (pid,) = place.qemu_pids()
        os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.communicate()
    place.assert_cleared()


def is_open(disk: Path) -> bool:
    """Whether a VM has a disk open."""
    try:
        check_unused(disk, patience=0)
    except Busy:
        return True
    return False


def left_over(place: Place, fresh: Path) -> int:
    """Kill a composer with its companions, its guest being frozen; return the pid of the VM that is left."""
    with place.started("update", fresh) as process:
        while not is_open(fresh):
            assert process.poll() is None, "it ended before it had the disk open"
            time.sleep(0.02)
        (pid,) = place.qemu_pids()
        os.kill(pid, signal.SIGSTOP)
        for companion in companions(process.pid):
            os.kill(companion, signal.SIGKILL)
        process.kill()
        process.communicate()
    assert place.qemu_pids() == [pid]
    return pid


def test_leftover_of_a_killed_composer_is_cleared_by_vm_rm(place: Place, fresh: Path) -> None:
    left_over(place, fresh)
    cleared = subprocess.run(
        [sys.executable, "-m", "composer", "vm", "rm"],
        env=place.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cleared 1" in cleared.stdout
    assert place.qemu_pids() == []
    place.assert_cleared()
    # What lies beside the disk is not the runs' matter.
    assert len(list(fresh.parent.iterdir())) > 2
    assert place.composer("gc").code == 0
    assert sorted(path.name for path in fresh.parent.iterdir()) == ["copy.qcow2", "copy.qcow2.manifest.json"]


def test_leftover_of_a_killed_composer_is_cleared_by_the_next(place: Place, fresh: Path) -> None:
    """Though it has the disk open."""
    pid = left_over(place, fresh)
    with place.started("update", fresh) as process:
        wait_for_vm(place, process, but=pid)
        assert pid not in place.qemu_pids()
        process.terminate()
        process.communicate()
    place.assert_cleared(fresh.parent)
