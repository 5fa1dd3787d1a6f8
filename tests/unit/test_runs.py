"""The folders of running jobs, and what is done about those whose composer is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import BadInput
from composer.store.runs import Run, Runs

# Opens a run, tells its name, and sleeps until it is killed.
OWN = """
import sys, time
from pathlib import Path
from composer.store.runs import Runs, opened_driver
opened_driver(Path(sys.argv[1]))
with Runs(Path(sys.argv[1])).open("work") as run:
    print(run.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def runs(places: Path) -> Runs:
    return Runs(places)


@contextmanager
def owned_elsewhere(runs: Runs) -> Iterator[tuple[subprocess.Popen[str], Run]]:
    """Have another process own a run."""
    with subprocess.Popen(
        [sys.executable, "-c", OWN, runs.folder], stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            yield owner, Run(runs.folder / owner.stdout.readline().strip())
        finally:
            owner.kill()
            owner.wait()
            # Its companions clear up now; the folder must not be removed under them.
            deadline = Deadline.after(10)
            while list(runs.folder.glob(f"p{owner.pid}-*")):
                deadline.check("libvirt's state to go")
                time.sleep(0.02)


@contextmanager
def fake_qemu(
    tmp_path: Path, *argv: str | Path, name: str = "qemu-fake"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is called qemu."""
    program = tmp_path / name
    shutil.copy("/bin/sh", program)
    with subprocess.Popen([program, "-c", "read x", *argv], stdin=subprocess.PIPE) as process:
        try:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # the kernel is still at its exec
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def orphan(runs: Runs) -> Run:
    """Make the folder that is left where a composer and its companion are both gone."""
    run = Run(runs.folder / "c00000001")
    run.path.mkdir(mode=0o700)
    (run.path / "owner.lock").write_text('{"pid": 1}')
    return run


def test_a_run_goes_with_its_block(runs: Runs) -> None:
    with runs.open("work") as run:
        assert run.alive
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert runs.find(run.name[:4]) == run
        assert runs.clear_leftovers() == []
        run.describe("building", "embed")
        assert run.description()["purpose"] == "building"
        assert run.description()["pid"] == os.getpid()
    assert runs.all() == []


def test_a_run_at_work_elsewhere_is_left_alone(runs: Runs) -> None:
    with owned_elsewhere(runs) as (_, run):
        assert runs.clear_leftovers() == []
        assert run.alive


def test_a_killed_composers_vm_is_ended_by_its_companion(runs: Runs, tmp_path: Path) -> None:
    with owned_elsewhere(runs) as (owner, run), fake_qemu(tmp_path, run.path / "disk") as vm:
        owner.kill()
        assert vm.wait(10) == -9
        deadline = Deadline.after(10)
        while run.path.exists():
            deadline.check("the run's folder to go")
            time.sleep(0.05)


def test_what_a_killed_composer_asked_qemu_with_is_ended(runs: Runs, tmp_path: Path) -> None:
    with owned_elsewhere(runs) as (owner, _):
        (root,) = runs.folder.glob(f"p{owner.pid}-*")
        assert root.is_dir()
        wanted = Run(runs.folder / "ckept")
        wanted.path.mkdir()
        wanted.keep()
        with (
            fake_qemu(tmp_path, "-qmp", f"unix:{root}/lib/qemu/qmp-1/qmp.monitor") as asking,
            # libvirt started it as its run was being cleared.
            fake_qemu(tmp_path, "-name", "guest=cgone,x=y", f"{root}/lib/key", name="qemu-late") as late,
            fake_qemu(tmp_path, "-name", "guest=ckept-1,x=y", f"{root}/lib/key", name="qemu-kept") as kept,
        ):
            owner.kill()
            assert asking.wait(10) == -9
            assert late.wait(10) == -9
            deadline = Deadline.after(10)
            while root.exists():
                deadline.check("libvirt's state to go")
                time.sleep(0.05)
            assert kept.poll() is None


# Ends in order; what is registered first comes last, as libvirt's threads do.
TO_THE_END = """
import atexit, os, sys
from pathlib import Path
from composer.store.runs import opened_driver
written = []
atexit.register(lambda: (written[0] / "run").mkdir(parents=True, exist_ok=True))
written.append(opened_driver(Path(sys.argv[1])))
"""


def test_libvirts_state_goes_though_its_threads_write_to_the_end(runs: Runs) -> None:
    subprocess.run([sys.executable, "-c", TO_THE_END, runs.folder], check=True)
    deadline = Deadline.after(10)
    while list(runs.folder.glob("p*")):
        deadline.check("libvirt's state to go")
        time.sleep(0.05)


def test_what_was_asked_with_is_ended_by_whoever_comes_next(runs: Runs, tmp_path: Path) -> None:
    root = runs.folder / f"p{os.getpid()}-012345"
    root.mkdir()
    os.utime(root, (0, 0))
    with fake_qemu(tmp_path, f"unix:{root}/qmp.monitor") as asking:
        runs.clear_leftovers()
        assert asking.wait(5) == -9
    assert not root.exists()


def test_leftovers_are_cleared(runs: Runs, tmp_path: Path) -> None:
    run = orphan(runs)
    with (
        fake_qemu(tmp_path, run.path / "disk") as its_own,
        fake_qemu(tmp_path, f"{run.path}x/disk", name="qemu-other") as similar,
        fake_qemu(tmp_path, run.path / "disk", name="editor") as editor,
    ):
        assert run.qemu_pids() == [its_own.pid]
        assert runs.clear_leftovers() == [run.name]
        assert its_own.wait(5) == -9
        assert similar.poll() is None
        assert editor.poll() is None
    assert not run.path.exists()


def test_a_kept_run_stays_while_its_vm_runs(runs: Runs, tmp_path: Path) -> None:
    with runs.open("work") as run:
        run.keep()
    assert run.path.exists()
    with fake_qemu(tmp_path, run.path / "disk") as vm:
        os.utime(run.path, (0, 0))  # not a folder that is being made this moment
        assert runs.clear_leftovers() == []
        assert vm.poll() is None
    vm.wait(5)
    os.utime(run.path, (0, 0))
    assert runs.clear_leftovers() == [run.name]
    assert not run.path.exists()


def test_a_folder_that_is_being_made_is_left_alone(runs: Runs) -> None:
    young = runs.folder / "c00000000"
    young.mkdir()
    assert runs.clear_leftovers() == []
    (young / "owner.lock").touch()  # and not locked yet
    assert runs.clear_leftovers() == []
    os.utime(young, (time.time() - 120,) * 2)
    assert runs.clear_leftovers() == [young.name]


def test_clear_ends_the_vm(runs: Runs, tmp_path: Path) -> None:
    with runs.open("work") as run, fake_qemu(tmp_path, f"file={run.path}/disk,format=qcow2") as vm:
        run.clear()
        assert vm.wait(5) == -9
        assert not run.path.exists()


def test_find(runs: Runs) -> None:
    for name in ("c1a", "c1b"):
        (runs.folder / name).mkdir()
    assert runs.find("c1a").name == "c1a"
    for prefix, count in (("c1", "2"), ("x", "no")):
        with pytest.raises(BadInput, match=f"{count} helper VMs"):
            runs.find(prefix)


@pytest.mark.parametrize("said", ["", "{", "[1]", "null"])
def test_description_that_is_none(runs: Runs, said: str) -> None:
    run = runs.folder / "c1"
    run.mkdir()
    assert Run(run).description() == {}
    (run / "vm.json").write_text(said)
    assert Run(run).description() == {}
