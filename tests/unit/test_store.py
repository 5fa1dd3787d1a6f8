"""What outlives a job: locks, files that are never half there, folders."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import BadInput, Busy
from composer.store.folders import (
    Folders,
    check_utf8,
    copied,
    give_like,
    has_reflinks,
    publish,
    written_beside,
)
from composer.store.locks import is_abandoned, is_locked, locked
from composer.store.runs import Runs
from tests.unit.unprivileged import NOBODY, as_nobody

HOLD = """
import sys, time
from pathlib import Path
from composer.store.locks import locked
with locked(Path(sys.argv[1]), purpose="update of a disk", what="it"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_busy_names_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held_elsewhere(lock) as holder:
        assert is_locked(lock)
        with pytest.raises(Busy) as caught, locked(lock, purpose="mine", what="the disk x"):
            pass
    for word in ("the disk x", f"pid {holder.pid} ", socket.gethostname(), "update of a disk"):
        assert word in caught.value.message
    assert caught.value.hint


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held_elsewhere(lock) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait(5)
        assert not is_locked(lock)
        with locked(lock, purpose="mine", what="it"):
            assert is_locked(lock)
    assert not lock.exists()


def test_a_folder_is_abandoned_when_its_holder_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_abandoned(lock), "it is being made"
    lock.touch()
    assert not is_abandoned(lock), "and not locked yet"
    os.utime(tmp_path, (0, 0))
    assert is_abandoned(lock)
    lock.unlink()
    with held_elsewhere(lock) as holder:
        os.utime(tmp_path, (0, 0))
        assert not is_abandoned(lock)
        holder.kill()
        holder.wait(5)
    assert is_abandoned(lock)
    assert not is_abandoned(tmp_path / "none" / "lock")


def test_waits_for_the_deadline(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    began = time.monotonic()
    with locked(lock, purpose="first", what="it"):
        with pytest.raises(Busy), locked(lock, purpose="x", what="it", wait=Deadline.after(0.3)):
            pass
        assert 0.3 <= time.monotonic() - began < 2


def test_waits_for_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held_elsewhere(lock) as holder:
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {holder.pid}"])
        with locked(lock, purpose="second", what="it", wait=Deadline.after(10)):
            assert killer.wait(5) == 0


def test_nothing_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(RuntimeError), locked(lock, purpose="x", what="it"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert not is_locked(lock)


def test_a_link_in_the_place_of_a_lock(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "lock", purpose="x", what="it"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


NONSENSE = [
    b"", b"{}", b"[1]", b"\xff", b'{"since": "x"}', b"{" * 4000,
    *(b'{"pid": %s, "host": "h", "since": %s, "purpose": "p"}' % odd
      for odd in ((b"-1", b"1"), (b"1", b"1e300"), (b"1", b"NaN"), (b"9" * 99, b"1"), (b"1", b"-1e18"))),
]  # fmt: skip


def test_a_fifo_in_the_place_of_a_lock_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")
    with locked(tmp_path / "lock", purpose="x", what="it"):
        pass


@pytest.mark.parametrize("said", NONSENSE)
def test_a_holder_that_says_nonsense(tmp_path: Path, said: bytes) -> None:
    lock = tmp_path / "lock"
    with locked(lock, purpose="first", what="it"):
        lock.write_bytes(said)
        with pytest.raises(Busy, match="did not say"), locked(lock, purpose="second", what="it"):
            pass


# On a file system that takes not a byte more, as far as this process sees.
FULL = """
import resource, sys
from pathlib import Path
from composer.store.locks import is_locked, locked
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with locked(Path(sys.argv[1]), purpose="x", what="it"):
    assert is_locked(Path(sys.argv[1]))
"""


def test_what_frees_a_full_file_system_gets_its_lock(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FULL, tmp_path / "lock"], check=True)
    assert list(tmp_path.iterdir()) == []


# As an ordinary user, who may not write to the file.
LEFT = """
import os, sys
from pathlib import Path
from composer.store.locks import locked
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
with locked(Path(sys.argv[1]), purpose="x", what="it") as lock:
    assert os.fstat(lock).st_uid == os.getuid()
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make a folder that all may write to, below one that all may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("in_the_way", ["nothing", "a sticky folder", "its holder"])
def test_a_lock_that_another_users_composer_left(shared: Path, in_the_way: str) -> None:
    lock = shared / "lock"
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": 0, "purpose": "nightly"}
    lock.write_text(json.dumps(holder))
    lock.chmod(0o444)
    if in_the_way == "a sticky folder" and os.geteuid() == 0:
        shared.chmod(0o1777)
    argv = [sys.executable, "-c", LEFT, str(lock)]
    if in_the_way == "its holder":
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            done = subprocess.run(argv, capture_output=True, text=True)
        assert "Busy" in done.stderr
        assert f"pid {os.getpid()} on {socket.gethostname()}" in done.stderr
        assert "for nightly" in done.stderr
    else:
        done = subprocess.run(argv, capture_output=True, text=True)
        refused = "sticky" in in_the_way and os.geteuid() == 0
        assert ("PermissionError" in done.stderr) == refused, done.stderr
        assert (done.returncode == 0) != refused, done.stderr
        assert lock.exists() == refused


# Tries without a pause: who comes as the file goes away must not hold a lock that nobody else sees.
COUNT = """
import sys
from pathlib import Path
from composer.errors import Busy
from composer.store.locks import locked
number, done = Path(sys.argv[2]), 0
while done < 150:
    try:
        with locked(Path(sys.argv[1]), purpose="count", what="it"):
            number.write_text(str(int(number.read_text()) + 1))
            done += 1
    except Busy:
        pass
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, tmp_path / "lock", number]) for _ in range(4)]
    assert [process.wait(50) for process in counting] == [0] * 4
    assert number.read_text() == "600"


def test_written_beside(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with written_beside(target, 0o640) as new:
        assert new.parent == tmp_path
        new.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_written_beside_fails(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def write_half() -> None:
        with written_beside(target) as new:
            new.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_publish(tmp_path: Path) -> None:
    new, target = tmp_path / "new", tmp_path / "target"
    new.write_text("new")
    publish(new, target)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]
    assert target.exists()


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name)


def test_places_by_variables(short: Path) -> None:
    home = {"HOME": str(short / "home")}
    xdg = {"XDG_CACHE_HOME": str(short / "xc"), "XDG_RUNTIME_DIR": str(short)}
    own = {f"COMPOSER_{name}": str(short / name[0].lower()) for name in ("CACHE", "RUNS", "STATE")}
    runtime = {"XDG_RUNTIME_DIR": str(short)}
    assert Folders.of({**home, **runtime}).cache == short / "home/.cache/ostree-composer"
    found = Folders.of({**home, **xdg})
    assert (found.cache, found.runs) == (short / "xc/ostree-composer", short / "ostree-composer")
    assert found.state == short / "home/.local/state/ostree-composer"
    assert (
        Folders.of({**home, "XDG_STATE_HOME": str(short / "s"), **runtime}).state
        == short / "s/ostree-composer"
    )
    assert Folders.of({**home, **xdg, **own}) == Folders(short / "c", short / "r", remembered=short / "s")


def test_a_runtime_folder_that_is_not_there(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    folders = Folders.of({"HOME": str(short), "XDG_RUNTIME_DIR": "/run/user/none"})
    assert folders.runs == short / f"ostree-composer-{os.getuid()}"


def test_runs_of_composers_with_another_environment(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cron started has no XDG_RUNTIME_DIR."""
    monkeypatch.setattr(tempfile, "tempdir", str(short / "tmp"))
    (short / "tmp").mkdir()
    environ = {"HOME": str(short), "XDG_RUNTIME_DIR": str(short)}
    assert Folders.of(environ).elsewhere == ()
    by_cron = short / "tmp" / f"ostree-composer-{os.getuid()}"
    with Runs(Folders.of({"HOME": str(short)}).runs).open("nightly") as run:
        assert run.path.parent == by_cron
        folders = Folders.of(environ)
        assert (folders.runs, folders.elsewhere) == (short / "ostree-composer", (by_cron,))
        assert Runs.of(folders).find(run.name) == run
        assert Folders.of({**environ, "COMPOSER_RUNS": str(short / "r")}).elsewhere == ()
    by_cron.rename(short / "real")
    by_cron.symlink_to(short / "real")
    assert Folders.of(environ).elsewhere == ()


def test_places_are_private(short: Path) -> None:
    (short / "r").mkdir(mode=0o755)
    folders = Folders.of({"COMPOSER_CACHE": str(short / "c"), "COMPOSER_RUNS": str(short / "r")})
    assert folders.runs.stat().st_mode & 0o777 == 0o700
    assert folders.cache.stat().st_mode & 0o777 == 0o700


OURS = pytest.mark.parametrize(
    ("variable", "name"), [("COMPOSER_CACHE", "c"), ("COMPOSER_RUNS", "r"), ("COMPOSER_STATE", "s")]
)


def refused(short: Path, why: str, hint: str, **folders: Path) -> None:
    places = {f"COMPOSER_{name}": short / name[0].lower() for name in ("CACHE", "RUNS", "STATE")} | folders
    with pytest.raises(BadInput, match=why) as caught:
        Folders.of({name: str(path) for name, path in places.items()})
    assert hint in (caught.value.hint or "")


def test_folder_of_runs_with_a_long_path(short: Path) -> None:
    refused(short, "too long a path", "export COMPOSER_RUNS=", COMPOSER_RUNS=short / ("x" * 60))


@OURS
def test_a_folder_that_is_a_link(short: Path, variable: str, name: str) -> None:
    (short / "elsewhere").mkdir()
    (short / name).symlink_to("elsewhere")
    refused(short, f"{short / name} is a symbolic link", f"export {variable}={short / 'elsewhere'}")


@OURS
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to(short: Path, variable: str, name: str, mode: int) -> None:
    (short / name).mkdir()
    (short / name).chmod(mode)
    refused(short, f"{short / name} can be written to by others", f"chmod go-w {short / name}")


@OURS
@pytest.mark.asroot
@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder away")
def test_a_folder_of_somebody_else(short: Path, variable: str, name: str) -> None:
    (short / name).mkdir(mode=0o755)
    os.chown(short / name, 65534, 65534)
    refused(short, "belongs to another user", f"export {variable}=")


def test_folder_that_cannot_be_made(short: Path) -> None:
    (short / "file").touch()
    refused(short, "cannot make the folder", "", COMPOSER_RUNS=short / "file" / "r")


@pytest.mark.parametrize("holes", ["none", "some", "all"])
def test_copies_have_the_bytes_and_not_the_holes_filled(holes: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        if holes != "all":
            file.write(b"begin" * 1000)
        if holes != "none":
            file.seek(2**24)
        if holes == "some":
            file.write(b"end")
        file.truncate(file.tell() + (2**20 if holes != "none" else 0))
    copied(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 8


def test_reflinks_are_tried_for_real(tmp_path: Path) -> None:
    assert has_reflinks(tmp_path) in (True, False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_given_what_the_one_before_had(tmp_path: Path) -> None:
    like, new = tmp_path / "like", tmp_path / "new"
    like.touch()
    new.touch()
    like.chmod(0o640)
    groups = [4711] if os.geteuid() == 0 else [group for group in os.getgroups() if group != os.getegid()]
    if groups:
        os.chown(like, -1, groups[0])
    # acl(5) as Linux keeps it: user::rw-, user:4711:r--, group::r--, mask::r--, other::---
    entries = [(1, 6, 2**32 - 1), (2, 4, 4711), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(like, "system.posix_acl_access", acl)
    give_like(new, like)
    assert os.getxattr(new, "system.posix_acl_access") == acl
    for name in ("st_uid", "st_gid", "st_mode"):
        assert getattr(new.stat(), name) == getattr(like.stat(), name)


@pytest.mark.parametrize("act", ["give", "publish"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_was_put_in_a_new_files_place_is_not_touched(tmp_path: Path, act: str, kind: str) -> None:
    victim, new, like = tmp_path / "victim", tmp_path / "new", tmp_path / "like"
    victim.write_text("precious")
    victim.chmod(0o600)
    like.touch(0o666)
    like.chmod(0o666)
    if kind == "link":
        new.symlink_to(victim)
    else:
        new.mkdir(0o700)
    with pytest.raises(OSError, match=r"symbolic link|no file"):
        give_like(new, like) if act == "give" else publish(new, like)
    assert victim.stat().st_mode & 0o777 == 0o600
    assert like.read_text() == ""


def test_a_link_in_the_place_of_what_attributes_are_taken_from(tmp_path: Path) -> None:
    new, like = tmp_path / "new", tmp_path / "like"
    new.touch(0o600)
    (tmp_path / "open").touch()
    like.symlink_to("open")
    with pytest.raises(OSError, match="no file"):
        give_like(new, like)


def test_another_group_does_not_get_what_was_for_one(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.touch()
    like = Path("/etc/shadow")  # of a group that this user is not in; looked at, and not into
    if os.geteuid() == 0:
        like = tmp_path / "like"
        like.touch(0o664)
        for path in (tmp_path, new):
            os.chown(path, NOBODY, NOBODY)
    was = like.stat()
    assert was.st_mode & 0o070
    # Relative: nobody may pass through the folders above.
    near = Path("like") if like.parent == tmp_path else like
    as_nobody(tmp_path, lambda: give_like(Path("new"), near))
    assert new.stat().st_gid != was.st_gid
    assert new.stat().st_mode & 0o777 == was.st_mode & 0o707


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    check_utf8(tmp_path / "ü\n")
    with pytest.raises(BadInput, match="is no UTF-8"):
        check_utf8(tmp_path / os.fsdecode(b"caf\xe9"))
