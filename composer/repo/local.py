"""An OSTree repo on the host: what is asked of it, through the `ostree` program."""

from __future__ import annotations

import configparser
import re
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import BadInput, ToolFailed
from composer.process import Limits, run
from composer.recipe.hostfiles import host_path
from composer.repo.commit import MODULES, Listed, Tree, parse_listing, parse_objects

# ostree itself refuses a file that the file system has no room for, and says so (min-free-space-percent).
_LIMITS = Limits(file=None)
COMMIT = re.compile(r"[0-9a-f]{64}\Z")
# The sixth of a commit's eight fields (ostree-core.h, OSTREE_COMMIT_GVARIANT_STRING), found from the end:
# the line: what comes before it is free text, without newlines.  Signatures are told in lines after it.
_TIMESTAMP = re.compile(r", uint64 (\d+), \[byte [^]]*\], \[byte [^]]*\]\)$", re.MULTILINE)
# A header has at least its fixed fields.
_SMALLEST = 32
_PIECE = 2**16
_ARCHIVE = ("archive", "archive-z2")


@dataclass(frozen=True)
class Repo:
    """A repo in a folder; ``source`` is how the user named it, ``mode`` as ostree calls its layout."""

    path: Path
    source: str
    mode: str = "archive"

    @property
    def servable(self) -> bool:
        """Whether it can be pulled from over HTTP: other modes keep owners in extended attributes."""
        return self.mode in _ARCHIVE

    def ostree(self, *argv: str, deadline: Deadline) -> str:
        """Run an ostree command on it and return what that printed."""
        return run(["ostree", f"--repo={self.path}", *argv], deadline=deadline, limits=_LIMITS).text

    def resolve(self, ref: str, deadline: Deadline) -> str:
        """Return the commit that ``ref`` names; BadInput, with the refs there are, where it names none."""
        try:
            commit = self.ostree("rev-parse", "--", ref, deadline=deadline).strip()
        except ToolFailed as error:
            refs = self.ostree("refs", deadline=deadline).split()
            some = ", ".join(sorted(refs)[:8]) or "none at all"
            raise BadInput(
                f"the repo {self.source} has no ref {ref!r}; it has {some}",
                hint=f"ostree --repo={self.source} refs",
            ) from error
        if not COMMIT.match(commit):
            raise BadInput(f"the ref {ref!r} of {self.source} names no commit: {commit[:80]!r}")
        return commit

    def tree(self, commit: str, deadline: Deadline) -> Tree:
        """Return the listing of a whole commit."""
        return parse_listing(commit, self._list(commit, deadline))

    def objects(self, commit: str, deadline: Deadline) -> frozenset[str]:
        """Return all objects that a commit is made of, as `CHECKSUM.TYPE`, its own two aside."""
        return parse_objects(self._list(commit, deadline, "-C"))

    def _list(self, commit: str, deadline: Deadline, *options: str) -> str:
        try:
            return self.ostree("ls", "-R", *options, commit, deadline=deadline)
        except ToolFailed as error:
            raise BadInput(
                f"commit {commit[:12]} of {self.source} cannot be read: {error.message}",
                hint=f"ostree --repo={self.source} fsck",
            ) from error

    def kernel_tree(self, commit: str, deadline: Deadline) -> Tree:
        """Return the part of a commit in which its kernel lies, which is much quicker than all of it."""
        paths: dict[str, Listed] = {}
        try:
            paths |= parse_listing(commit, self.ostree("ls", commit, MODULES, deadline=deadline)).paths
            folders = [path for path, item in paths.items() if item.type == "d" and path != MODULES]
            if folders:
                inner = self.ostree("ls", commit, *folders, deadline=deadline)
                paths |= parse_listing(commit, inner).paths
        except ToolFailed as error:
            if "No such file or directory" not in error.stderr and "not found" not in error.stderr.lower():
                raise
        return Tree(commit, paths)

    def has_commit(self, commit: str, deadline: Deadline) -> bool:
        """Whether the repo still holds a commit."""
        try:
            self.ostree("show", "--raw", commit, deadline=deadline)
        except ToolFailed:
            return False
        return True

    def is_whole(self, commit: str, deadline: Deadline) -> bool:
        """Whether the repo holds all of a commit, not just what it says of itself."""
        partial = self.path / "state" / f"{commit}.commitpartial"
        return not partial.exists() and self.has_commit(commit, deadline)

    def timestamp(self, commit: str, deadline: Deadline) -> int | None:
        """Return when a commit says that it was made, in seconds since the epoch; None without the commit."""
        try:
            said = self.ostree("show", "--raw", commit, deadline=deadline)
        except ToolFailed:
            return None
        found = _TIMESTAMP.search(said)
        return int(found[1]) if found else None

    def read(self, commit: str, path: str, deadline: Deadline) -> bytes:
        """Return the content of one file of a commit."""
        return run(["ostree", f"--repo={self.path}", "cat", commit, path], deadline=deadline).stdout

    def export_argv(self, commit: str) -> list[str]:
        """Return the command that writes a commit as a tar stream, owners and modes included."""
        return ["ostree", f"--repo={self.path}", "export", commit]

    def object_path(self, name: str) -> Path:
        """Return where an object `CHECKSUM.TYPE` lies."""
        return self.path / "objects" / name[:2] / name[2:]


def unsound(files: Iterable[Path]) -> list[str]:
    """Name those of an archive repo's files that are missing, cut short or damaged, each with the reason."""
    found = []
    for file in files:
        name = f"objects/{file.parent.name}/{file.name}"
        try:
            fault = _fault_of(file.read_bytes())
        except OSError as error:
            fault = error.strerror
        except zlib.error:
            fault = "damaged"
        if fault:
            found.append(f"{name}: {fault}")
    return found


def _fault_of(data: bytes) -> str | None:
    """Tell what is wrong with a file's form; zlib.error where it cannot be unpacked.

    Four bytes with the length of the header, big-endian, four of nothing; the header, which is the size of
    the content, uid, gid, mode, rdev and more; and of a regular file, raw deflate (ostree-core.c,
    _ostree_zlib_file_header_new).  libostree refuses these without the object's name.
    """
    if len(data) < _SMALLEST:
        return "cut short"
    header = int.from_bytes(data[:4], "big")
    size, mode, device = (int.from_bytes(data[at:to], "big") for at, to in ((8, 16), (24, 28), (28, 32)))
    if not _SMALLEST <= header + 8 <= len(data) or device or not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        return "damaged in its header"
    if not stat.S_ISREG(mode):
        return None
    packed, length = memoryview(data)[8 + header :], 0
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    # A piece becomes a thousand times its size at most, so nobody fills our memory.
    for start in range(0, len(packed), _PIECE):
        length += len(inflate.decompress(packed[start : start + _PIECE]))
        if inflate.eof or length > size:
            break
    else:
        return "cut short"
    return None if length == size else "of another size than its header says"


def open_repo(source: str, folder: Path) -> Repo:
    """Return the repo in a folder, which is relative to ``folder``; BadInput where there is none."""
    path = host_path(source, folder).resolve()
    try:
        text = (path / "config").read_text()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} is no OSTree repo: it has no readable file 'config'",
            hint=f"ostree init --mode=archive --repo={path}   makes an empty one",
        ) from error
    return Repo(path, str(path), mode_of(text, str(path)))


def mode_of(config: str, where: str) -> str:
    """Return the mode that a repo's config names; BadInput where it is no such config."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(config)
        return parser.get("core", "mode")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{where} is no OSTree repo: its config has no core.mode") from error
