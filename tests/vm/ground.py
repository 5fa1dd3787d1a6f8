"""What VM tests and experiments share: a repo, a recipe, a disk built from them, and that build's cache.

All of it is made once and lies in one folder, the ground.  Each test process works in a place of its own,
with its own copies of the cache and of the disk.  So the ground does not change, except that tests add refs
to its repo.  COMPOSER_TEST_GROUND names the folder: the first process that is given it makes the ground
there, and later ones open it.  Without that variable a process makes a ground of its own and removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from tests.vm.place import HASH, LEAN_REF, REF, Place, Ran, Trace, ostree

# Below this a file is copied: what a composer changes in place, such as locks and notes, is small.
_LINKED_BYTES = 2**20
_REMOVAL_SECONDS = 10.0

# Two emulated guests with one CPU each are as fast side by side as one alone, with two each half as fast
# (docs/performance.md).
RECIPE = """
name = "test"
[ostree]
repo = "repo"
ref = "debian/bookworm/amd64/demo"
stateroot = "debian"
kargs = ["console=tty0", "console=ttyS0,115200"]
[ostree.verify]
gpg_keys = ["signers.gpg"]
[ostree.remote]
url = "https://ostree.example.org/debian"
[disk]
size = "3 GiB"
[bootstrap]
cpus = 1
[system]
hostname = "tested"
[[users]]
name = "admin"
uid = 4711
groups = ["sudo"]
password_hash = "@HASH@"
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0a5ZPqgT1GxmBYHbn0pRr0bkRqLx3pTxkB1hJqCLtA test"]
[[users]]
name = "root"
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0a5ZPqgT1GxmBYHbn0pRr0bkRqLx3pTxkB1hJqCLtA test"]
[[files]]
path = "/etc/odd $(touch pwned) 'name' ü"
content = "a 'quoted' $HOME `text` \\\\ with\\nlines and no end"
mode = "0640"
group = "sudo"
[output]
path = "test.qcow2"
""".replace("@HASH@", HASH)


@dataclass(frozen=True)
class Repo:
    """The tests' repo, and the two commits that REF names one after the other."""

    path: Path
    first: str
    second: str

    def point(self, commit: str) -> None:
        """Make REF name a commit."""
        ostree(self.path, "refs", "--force", f"--create={REF}", commit)

    def linked(self, path: Path) -> Repo:
        """Return a copy at ``path`` that may be changed; the objects are hard links."""
        linked(self.path, path, at_least=0)
        # A lock is a file's, so a hard link of it would be the same lock.
        (path / ".lock").unlink(missing_ok=True)
        return Repo(path, self.first, self.second)


@dataclass(frozen=True)
class Built:
    """The disk of the first commit, and the composer's run that made it."""

    disk: Path
    ran: Ran
    trace: Trace

    def copied(self, disk: Path) -> Path:
        """Copy the disk and its manifest; return ``disk``, which belongs to who runs the tests."""
        for suffix in ("", ".manifest.json"):
            # cp -a keeps the times by which the manifest knows its disk
            copied(Path(f"{self.disk}{suffix}"), Path(f"{disk}{suffix}"))
        return disk


def copied(source: Path, target: Path) -> None:
    """Copy a file or a folder with its times; the copy belongs to who runs the tests."""
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "0:0", target], check=True)


def linked(source: Path, target: Path, at_least: int = _LINKED_BYTES) -> None:
    """Copy a folder; files of ``at_least`` so many bytes become hard links, as do all objects of a repo."""

    def copy(old: str, new: str) -> str:
        if "/objects/" in old or os.lstat(old).st_size >= at_least:
            os.link(old, new, follow_symlinks=False)
            return new
        return shutil.copy2(old, new, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


class Ground:
    """The ground as one process sees it; ``place`` is where this process works.

    What is missing is made when it is first asked for, so that experiments that need no disk build none.
    ``boots``: whether experiments boot products on the way, which takes half a minute each without KVM.
    """

    def __init__(self, place: Place, home: Path, *, boots: bool) -> None:
        self.place, self.home, self.boots = place, home, boots

    @cached_property
    def repo(self) -> Repo:
        """A repo of our own, whose two commits are the lean ones."""
        path = self.home / "repo"
        if not path.exists():
            _copy_repo(path, self.place)
        return Repo(path, ostree(path, "rev-parse", f"{LEAN_REF}^"), ostree(path, "rev-parse", LEAN_REF))

    @cached_property
    def recipe(self) -> Path:
        """The tests' recipe."""
        path = self.home / "test.toml"
        if not path.exists():
            path.write_text(RECIPE)
        return path

    @cached_property
    def built(self) -> Built:
        """A disk of the first commit; REF names the second one afterwards."""
        trace, notes = Trace(self.home / "build.trace", opens=False), _notes(self.home)
        if not notes.exists():
            self.repo.point(self.repo.first)
            ran = self.place.composer("build", self.recipe, prefix=trace.prefix)
            assert ran.code == 0, ran.stderr
            self.repo.point(self.repo.second)
            notes.write_text(json.dumps(asdict(ran)))
        return Built(self.home / "test.qcow2", Ran(**json.loads(notes.read_text())), trace)


def _notes(home: Path) -> Path:
    """Return the file that the build's run is noted in; a ground that has it is whole."""
    return home / "built.json"


def _copy_repo(path: Path, place: Place) -> None:
    """Copy the repo that scripts/test-repo made and sign its lean commits; REF names the second of them."""
    named = os.environ.get("COMPOSER_TEST_REPO")
    assert named, "COMPOSER_TEST_REPO names the repo; scripts/test-repo makes it"
    copied(Path(named), path)
    (path.parent / "signers.gpg").write_bytes(place.gpg.make().public())
    repo = Repo(path, ostree(path, "rev-parse", f"{LEAN_REF}^"), ostree(path, "rev-parse", LEAN_REF))
    for commit in (repo.first, repo.second):
        place.sign(path, commit)
    repo.point(repo.second)


@contextmanager
def _ended(place: Place) -> Iterator[Place]:
    """Yield a place; at the end of the block its GPG agent is ended, and no VM may be left in it."""
    yield place
    if place.gpg.home.exists():
        place.gpg.end()
    assert place.qemu_pids() == []


@contextmanager
def made_place() -> Iterator[Place]:
    """Make a place, with a path that is short enough for unix sockets; it is removed if all went well."""
    with _ended(Place(Path(tempfile.mkdtemp(prefix="ct", dir="/var/tmp")))) as place:
        yield place
    # libvirt's threads in this process may write to its state as it is removed.
    late = time.monotonic() + _REMOVAL_SECONDS
    while place.folder.exists():
        shutil.rmtree(place.folder, ignore_errors=time.monotonic() < late)


def _furnish(place: Place, home: Path) -> None:
    """Give a place its own copy of what a ground's build left: the cache, and the key that signs commits."""
    # The agent's sockets cannot be copied.
    shutil.copytree(home / "gpg", place.gpg.home, ignore=shutil.ignore_patterns("S.*"))
    place.gpg.home.chmod(0o700)
    if (home / "cache").stat().st_uid == os.getuid():
        linked(home / "cache", place.cache)
        return
    # Another user's: a template is known by its files' inodes, so a copy of one is none.
    copied(home / "cache", place.cache)
    shutil.rmtree(place.cache / "template")


@contextmanager
def opened_ground(*, boots: bool) -> Iterator[Ground]:
    """Open the ground that COMPOSER_TEST_GROUND names, or make one, for the block."""
    named = os.environ.get("COMPOSER_TEST_GROUND")
    if named is None:
        with made_place() as place:
            yield Ground(place, place.folder, boots=boots)
        return
    home = Path(named)
    if _notes(home).exists():
        with made_place() as place:
            _furnish(place, home)
            yield Ground(place, home, boots=boots)
        return
    home.mkdir(exist_ok=True)
    with _ended(Place(home)) as place:
        yield Ground(place, home, boots=boots)
