"""Work on a disk: nothing of it outlives its composer, and `composer gc` finds what did."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from composer.compose.gc import collect
from composer.compose.workshop import Workshop
from composer.errors import Busy
from composer.events import Tape
from composer.store.folders import Folders
from composer.store.locks import locked
from composer.store.work import lock_path, noted_disks, working_on

# Works on a disk until it is killed or its stdin ends; its child takes a while to die, as a VM does.
WORK = """
import subprocess, sys
from pathlib import Path
from composer.store.folders import Folders
from composer.store.work import working_on
folders = Folders(Path(sys.argv[2]), Path(sys.argv[2]))
with working_on(Path(sys.argv[1]), folders, "update") as work, work.folder() as folder:
    (folder / "new.qcow2").write_bytes(bytes(100_000))
    if sys.argv[3] != "0":
        subprocess.Popen(["sleep", sys.argv[3]], pass_fds=[work.lock])
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def worker(disk: Path, folders: Folders, outlived_by: float = 0) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", WORK, str(disk), str(folders.cache), str(outlived_by or "0")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()
            process.wait()
            # Its companion clears up now; the test's folder must not be removed under it.
            began = time.monotonic()
            while lock_path(disk).exists() and time.monotonic() - began < 10:
                time.sleep(0.02)


def has_bytes(pipe: IO[bytes]) -> bool:
    """Whether something waits in a pipe to be read."""
    return any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))


def folders_in(folder: Path) -> Folders:
    return Folders(folder, folder)


def wait_until_empty(folder: Path, seconds: float) -> None:
    began = time.monotonic()
    while left := list(folder.iterdir()):
        assert time.monotonic() - began < seconds, left
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "disks"
    made.mkdir()
    return made


def test_the_scratch_folder_stays_the_same_whatever_is_put_in_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for root, who works in no folder in which others could put anything."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    disk, other = folder / "disk.qcow2", tmp_path / "other"
    other.mkdir()
    with working_on(disk, folders_in(tmp_path), "test") as work, work.folder() as scratch:
        (named,) = [path for path in folder.iterdir() if ".work." in path.name]
        named.rename(folder / "moved")
        named.symlink_to(other)
        (scratch / "new").write_text("ours")
        # For other programs too.
        subprocess.run(["sh", "-c", 'echo more >"$1"', "sh", scratch / "more"], check=True)
        assert sorted(path.name for path in (folder / "moved").iterdir()) == ["more", "new"]
    assert list(other.iterdir()) == []


def test_work_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with working_on(folder / "x.qcow2", folders_in(tmp_path), "build") as work, work.folder() as place:
        (place / "file").touch()
        assert [disk for _, disk in noted_disks(folders_in(tmp_path).work)] == [folder / "x.qcow2"]
    assert list(folder.iterdir()) == []
    assert list(noted_disks(folders_in(tmp_path).work)) == []


def test_a_killed_worker_leaves_nothing_beside_the_disk(folder: Path, tmp_path: Path) -> None:
    with worker(folder / "x.qcow2", folders_in(tmp_path)) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until_empty(folder, 5)


def test_a_worker_killed_as_it_ends_leaves_nothing_beside_the_disk(folder: Path, tmp_path: Path) -> None:
    """Its companion knows by then that it ends in order."""
    with worker(folder / "x.qcow2", folders_in(tmp_path)) as process:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        companion = int(found.stdout)
        os.kill(companion, signal.SIGSTOP)
        try:
            assert process.stdin is not None
            process.stdin.close()
            began = time.monotonic()
            with Path(f"/proc/{companion}/fd/0").open("rb") as said:
                while not has_bytes(said):
                    assert time.monotonic() - began < 5
                    time.sleep(0.02)
            process.kill()
            process.wait()
        finally:
            os.kill(companion, signal.SIGCONT)
        wait_until_empty(folder, 5)


def test_a_lock_that_is_another_ones_by_now_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, purpose="first", what="it"):
        lock.unlink()  # as a companion does
        lock.touch()
    assert lock.exists()


def test_the_lock_outlives_a_killed_worker_while_anything_of_it_writes(folder: Path, tmp_path: Path) -> None:
    disk = folder / "x.qcow2"
    with worker(disk, folders_in(tmp_path), 2) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        # The next one waits for that by itself: nobody is there who could be asked to end.
        with working_on(disk, folders_in(tmp_path), "update"):
            assert 1 < time.monotonic() - began < 10
    wait_until_empty(folder, 5)


def test_a_living_holder_is_named_at_once(folder: Path, tmp_path: Path) -> None:
    disk = folder / "x.qcow2"
    with worker(disk, folders_in(tmp_path)) as process:
        began = time.monotonic()
        with (
            pytest.raises(Busy, match=rf"pid {process.pid} on .* for update"),
            working_on(disk, folders_in(tmp_path), "x"),
        ):
            pass
        assert time.monotonic() - began < 1


def test_gc_clears_what_a_crash_of_the_host_left(workshop: Workshop, tape: Tape, folder: Path) -> None:
    folders = workshop.folders
    disk = folder / "odd name\n.qcow2"
    other = folder / "other.qcow2"
    for left in (disk, other):
        (folder / f".{left.name}.work.abcdefgh").mkdir()
        (folder / f".{left.name}.work.abcdefgh" / "overlay.qcow2").write_bytes(bytes(8192))
        lock_path(left).touch()
    with working_on(disk, folders, "update"):
        (note,) = folders.work.iterdir()
        crashed = note.read_bytes()
    (folder / f".{disk.name}.work.abcdefgh").mkdir()
    (folder / f".{disk.name}.work.abcdefgh" / "overlay.qcow2").write_bytes(bytes(8192))
    lock_path(disk).touch()
    note.write_bytes(crashed)
    (folder / "unrelated").touch()
    (workshop.folders.runs / "c0123").mkdir()
    os.utime(workshop.folders.runs / "c0123", (0, 0))
    downloads = folders.cache / "remote" / "tmp0123"
    downloads.mkdir(parents=True)
    (downloads / "object").write_bytes(bytes(8192))
    os.utime(downloads, (0, 0))
    before = sorted(path for top in (folder, folders.cache, folders.runs) for path in top.rglob("*"))
    would_free = collect(workshop, dry=True)
    told = tape.texts("note")
    assert sorted(path for top in (folder, folders.cache, folders.runs) for path in top.rglob("*")) == before
    assert collect(workshop) == would_free >= 2 * 8192
    assert tape.texts("note") == told * 2
    assert len(told) == 3
    assert not downloads.exists()
    assert not list(folders.runs.iterdir())
    # Of the other disk there is no note: nobody said that this is ours.
    assert {path.name for path in folder.iterdir()} == {
        "unrelated",
        f".{other.name}.work.abcdefgh",
        lock_path(other).name,
    }
    assert list(folders.work.iterdir()) == []


def test_gc_knows_of_a_lock_from_the_moment_it_is_there(folder: Path, tmp_path: Path) -> None:
    """A composer may be killed before it has said who it is, or has companions."""
    folders, disk = folders_in(tmp_path), folder / "x.qcow2"
    with locked(lock_path(disk), purpose="another", what="it"):
        with pytest.raises(Busy), working_on(disk, folders, "update"):
            pass
        assert [noted for _, noted in noted_disks(folders.work)] == [disk]
    # Where there can be no lock there is nothing to know of.
    (note,) = folders.work.iterdir()
    note.unlink()
    with pytest.raises(FileNotFoundError), working_on(folder / "none" / "x.qcow2", folders, "update"):
        pass
    assert list(folders.work.iterdir()) == []


def test_gc_removes_notes_that_were_never_finished(workshop: Workshop) -> None:
    folders = workshop.folders
    folders.work.mkdir(parents=True)
    (folders.cache / "accelerator").mkdir()
    (folders.cache / "template").mkdir()
    for place, name in (("work", ".{}.json.1.new"), ("accelerator", ".{}.json.1.new"), ("", ".reflink.{}")):
        for age, seconds in (("old", 3600), ("young", 0)):
            half = folders.cache / place / name.format(age)
            half.mkdir() if "reflink" in name else half.touch()
            os.utime(half, (time.time() - seconds,) * 2)
    (folders.cache / "template" / ".free.lock").touch()
    with locked(folders.cache / "template" / ".held.lock", purpose="x", what="it"):
        collect(workshop)
        left = {path.name for path in folders.cache.rglob(".*")}
    assert left == {".young.json.1.new", ".reflink.young", ".held.lock"}


def test_gc_leaves_alone_what_is_not_mounted_now(workshop: Workshop, folder: Path) -> None:
    """The folder that it would be mounted on is another one, and there."""
    disk = folder / "x.qcow2"
    with working_on(disk, workshop.folders, "update"):
        (note,) = workshop.folders.work.iterdir()
        crashed = note.read_bytes()
    note.write_bytes(crashed)
    mounted = folder.rename(folder.with_name("mounted"))
    folder.mkdir()
    collect(workshop)
    assert note.exists()
    # It is the right one after all where something of ours lies there: some file systems number anew.
    (folder / f".{disk.name}.work.abcdefgh").mkdir()
    collect(workshop)
    assert not note.exists()
    assert not list(folder.iterdir())
    note.write_bytes(crashed)
    folder.rmdir()
    mounted.rename(folder)
    collect(workshop)
    assert not note.exists()


def test_gc_leaves_alone_what_is_being_worked_on(workshop: Workshop, folder: Path) -> None:
    folders = workshop.folders
    with worker(folder / "x.qcow2", folders):
        before = sorted(folder.rglob("*"))
        collect(workshop)
        assert sorted(folder.rglob("*")) == before
        assert len(list(folders.work.iterdir())) == 1


def test_a_holder_that_is_late_to_say_who_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, purpose="first", what="it"):
        said = lock.read_bytes()
        lock.write_bytes(b"")
        writer = subprocess.Popen(["sh", "-c", 'sleep 0.2; cat >"$0"', lock], stdin=subprocess.PIPE)
        assert writer.stdin is not None
        writer.stdin.write(said)
        writer.stdin.close()
        with pytest.raises(Busy, match=f"pid {os.getpid()} "), locked(lock, purpose="second", what="it"):
            pass
        assert writer.wait(5) == 0


def test_programs_of_a_killed_worker_are_ended(folder: Path, tmp_path: Path) -> None:
    """As a qemu-img, which writes on into files that nobody sees any more."""
    disk = folder / "x.qcow2"
    with worker(disk, folders_in(tmp_path)) as process:
        (place,) = folder.glob(".x.qcow2.work.*")
        other = folder / ".x.qcow2.work.of another"
        argv = ["sh", "-c", "sleep 30; :"]
        mine = subprocess.Popen([*argv, str(place / "new.qcow2")])
        foreign = subprocess.Popen([*argv, str(folder / "x.qcow2")])
        other.mkdir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            assert mine.wait(5) == -signal.SIGKILL
            time.sleep(0.2)
            assert foreign.poll() is None
            assert other.exists()
        finally:
            foreign.kill()
            foreign.wait()
            mine.kill()
