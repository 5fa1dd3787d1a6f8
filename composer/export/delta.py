"""A part of a repo as a repo of its own: just the objects that a disk lacks.

As a read-only image it is the delta disk, which a helper gets attached and pulls from as from any local
repo; as a folder it is what 9p and virtiofs share.  Neither holds anything else of the host.

A pull walks the whole tree of a commit and asks the disk for each object of it, which takes an emulated
CPU two seconds however little changed.  So where little changed, the delta disk brings the objects as
ostree's own static delta, and no pull is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer import process
from composer.deadline import Deadline
from composer.errors import BadInput, RepoDamaged
from composer.repo.local import Repo
from composer.store.cache import Cache, Entry
from composer.store.folders import copied

KIND = "delta"
_FORMAT = 3
# Beyond it, packing (xz) takes the host longer than the helper's walk through the tree takes
# (docs/performance.md, "Transports"); in bytes of objects that changed.
_STATIC_LIMIT = 16 * 2**20
_IMAGE = "delta.ext4"
# What nobody needs who only reads it once; checksums of metadata would only cost the emulated CPU.
_FEATURES = "^has_journal,^resize_inode,^metadata_csum,^64bit"
_BLOCK, _INODE = 4096, 256
# What of an extended attribute finds room in the inode; a larger one takes a block.
_ATTRIBUTE_IN_INODE = 60


@dataclass(frozen=True)
class Wanted:
    """A commit, and those that the disk has already, of which nothing is moved.

    ``current`` is the one of these that the wanted one was found to be no older than, if any.
    """

    commit: str
    have: frozenset[str] = frozenset()
    current: str | None = None


@dataclass(frozen=True)
class Delta:
    """What brings a disk from one state to another: ``objects`` many, ``bytes`` of content."""

    entry: Entry
    fresh: bool

    @property
    def image(self) -> Path:
        """A file system with a repo in mode bare-user."""
        return self.entry.path / _IMAGE

    @property
    def objects(self) -> int:
        """How many objects it holds."""
        return int(self.entry.info["objects"])

    @property
    def room(self) -> int:
        """The bytes that its objects will take on the disk."""
        return int(self.entry.info["room"])

    @property
    def bytes(self) -> int:
        """The size of the image: what the helper can read of it."""
        return self.image.stat().st_size


def cache_of(folder: Path) -> Cache:
    """Return the cache of delta disks."""
    return Cache(folder, KIND)


def lacking(repo: Repo, wanted: Wanted, deadline: Deadline, known: Iterable[Repo] = ()) -> list[str]:
    """Return the objects of the wanted commit that no commit the disk has is made of.

    What the disk's commits are made of is looked up in ``repo`` and, where that knows them no more, in
    ``known``; one that none of these knows counts as one that the disk does not have.
    """
    objects = repo.objects(wanted.commit, deadline)
    for commit in wanted.have:
        objects -= _objects_of(commit, (repo, *known), deadline)
    extra = [f"{wanted.commit}.commit", f"{wanted.commit}.commitmeta"]
    return sorted(objects) + [name for name in extra if repo.object_path(name).exists()]


def _objects_of(commit: str, repos: Iterable[Repo], deadline: Deadline) -> frozenset[str]:
    for repo in repos:
        with suppress(BadInput):
            return repo.objects(commit, deadline)
    return frozenset()


def delta_disk(
    cache: Cache, repo: Repo, wanted: Wanted, deadline: Deadline, known: Iterable[Repo] = ()
) -> Delta:
    """Return the delta disk that brings what ``wanted`` lacks, made now if there is none yet.

    ``repo`` is the composer's own, of checked objects, below the same folder as the cache.
    """

    def make(folder: Path) -> dict[str, Any]:
        objects = lacking(repo, wanted, deadline, known)
        tree = folder / "tree"
        former = _former(repo, wanted, objects, deadline)
        room = room_for_objects(repo, objects)
        if former is None:
            _fill(tree, repo, objects, os.link)
        else:
            _fill(tree, repo, [name for name in objects if name.startswith(wanted.commit)], os.link)
            _write_static(tree / "static-delta", repo, former, wanted.commit, deadline)
        pack(tree, folder / _IMAGE, deadline)
        shutil.rmtree(tree)
        return {"objects": len(objects), "commit": wanted.commit, "room": room}

    return Delta(*cache.get(_inputs(repo, wanted), make, deadline))


def room_for_objects(repo: Repo, objects: Iterable[str]) -> int:
    """Return the room that objects take on a file system with 4 KiB blocks, an inode each included."""
    sizes = [path.lstat().st_size for name in objects if (path := repo.object_path(name)).exists()]
    return sum(-(-size // _BLOCK) * _BLOCK + _INODE for size in sizes)


def _former(repo: Repo, wanted: Wanted, objects: list[str], deadline: Deadline) -> str | None:
    """Return the commit to make a static delta from; None where too much changed or it is not whole here."""
    present = [path for name in objects if (path := repo.object_path(name)).exists()]
    if wanted.current is None or sum(path.stat().st_size for path in present) > _STATIC_LIMIT:
        return None
    return wanted.current if repo.is_whole(wanted.current, deadline) else None


def _write_static(path: Path, repo: Repo, former: str, commit: str, deadline: Deadline) -> None:
    """Write a static delta that needs nothing else; bsdiff would cost more than the bytes that it saves."""
    argv = ["static-delta", "generate", f"--from={former}", f"--to={commit}", f"--filename={path}"]
    repo.ostree(*argv, "--inline", "--min-fallback-size=0", "--disable-bsdiff", deadline=deadline)


def _inputs(repo: Repo, wanted: Wanted) -> dict[str, Any]:
    # A commit can be signed after it was made: its checksum is the same then, what goes along is not.
    meta = repo.object_path(f"{wanted.commit}.commitmeta")
    return {
        "format": _FORMAT,
        "to": wanted.commit,
        "from": [wanted.current, *sorted(wanted.have)],
        "signatures": hashlib.sha256(meta.read_bytes()).hexdigest() if meta.exists() else None,
    }


def pack(tree: Path, image: Path, deadline: Deadline) -> None:
    """Make an ext4 image of a folder, without root; ext4 is read by the guest without a copy in between."""
    blocks = inodes = 0
    for path in tree.rglob("*"):
        inodes += 1
        size = path.stat().st_size
        blocks += max(1, -(-size // _BLOCK)) if path.is_dir() else -(-size // _BLOCK)
        attributes = sum(len(os.getxattr(path, name)) for name in os.listxattr(path))
        blocks += attributes > _ATTRIBUTE_IN_INODE
    inodes += 64
    # 1/64: extents of large files, bitmaps; 2 MiB: group descriptors and what is there in any case.
    size = blocks * _BLOCK * 65 // 64 + inodes * _INODE + 2 * 2**20
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", _FEATURES, "-b", str(_BLOCK), "-I", str(_INODE)]
    argv += ["-N", str(inodes), "-m", "0", "-E", "lazy_itable_init=1", "-d", str(tree)]
    process.run([*argv, str(image), f"{-(-size // 1024)}k"], deadline=deadline)


@contextmanager
def shared_folder(
    place: Path, repo: Repo, wanted: Wanted, deadline: Deadline, known: Iterable[Repo] = ()
) -> Iterator[Path]:
    """Make the same as a folder in ``place``, for the block; of copies, so nobody can harm more than it."""
    tree = place / "shared-repo"
    _fill(tree, repo, lacking(repo, wanted, deadline, known), _copied_with_owner)
    try:
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _copied_with_owner(source: Path, target: Path) -> None:
    copied(source, target)
    for name in os.listxattr(source):  # where a repo in mode bare-user keeps owner and mode
        os.setxattr(target, name, os.getxattr(source, name))


def _fill(tree: Path, repo: Repo, objects: list[str], put: Callable[[Path, Path], object]) -> None:
    """Make a repo in ``tree`` of some objects of another."""
    for folder in ("objects", "refs/heads", "refs/remotes", "tmp", "state", "extensions"):
        (tree / folder).mkdir(parents=True)
    (tree / "config").write_text(f"[core]\nrepo_version=1\nmode={repo.mode}\n")
    for name in objects:
        target = tree / "objects" / name[:2] / name[2:]
        target.parent.mkdir(exist_ok=True)
        try:
            put(repo.object_path(name), target)
        except FileNotFoundError as error:
            raise RepoDamaged(f"the composer's own repo lacks the object {name}") from error
