"""Where the composer keeps its things, and how files are written so that none is ever half there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.errors import BadInput

# sockaddr_un.sun_path holds 108 bytes (unix(7)).  libvirt appends about 60 to the folder of a run.
_RUN_PATH_LIMIT = 108 - 64
# linux/fs.h: share the blocks of another file; ioctl_ficlone(2) for what it says where it cannot.
_FICLONE = 0x40049409
# Nobody takes longer over a small file, or between making a folder and its lock.
MAKING_SECONDS = 60.0
# qcow2 grows by clusters and tables; with less than this left the next write may not fit.
_ALMOST_NOTHING = 4 * 2**20
_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class Folders:
    """The folders of one user: ``cache`` survives a reboot, ``runs`` need not, ``state`` is kept for good.

    ``elsewhere`` is where composers of his have their runs that see another environment, as cron's do.
    """

    cache: Path
    runs: Path
    elsewhere: tuple[Path, ...] = ()
    remembered: Path | None = None

    @property
    def state(self) -> Path:
        """Where lies what is remembered for good."""
        return self.remembered or self.cache / "state"

    @property
    def work(self) -> Path:
        """Where the notes lie of disks that are being worked on (work.py)."""
        return self.cache / "work"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Folders:
        """Read the places from the environment, by the XDG base directory specification.

        COMPOSER_CACHE, COMPOSER_RUNS and COMPOSER_STATE override it.  Raises BadInput if a folder is not ours
        alone, or that of the runs has too long a path for unix sockets.
        """
        home = Path(environ.get("HOME") or Path.home())
        cache_home = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        cache = Path(environ.get("COMPOSER_CACHE") or cache_home / "ostree-composer")
        if named := environ.get("COMPOSER_RUNS"):
            runs, *elsewhere = [Path(named)]
        else:
            runtimes = [Path(environ.get("XDG_RUNTIME_DIR") or "/none"), Path(f"/run/user/{os.getuid()}")]
            own = [runtime / "ostree-composer" for runtime in runtimes if _is_ours(runtime)]
            last = Path(tempfile.gettempdir()) / f"ostree-composer-{os.getuid()}"
            # Not /run/user of itself: who has no session may lose it at any time (pam_systemd(8)).
            runs = own[0] if own and _is_ours(runtimes[0]) else last
            elsewhere = [place for place in {*own, last} - {runs} if _is_ours(place)]
        state_home = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state")
        state = Path(environ.get("COMPOSER_STATE") or state_home / "ostree-composer")
        folders = cls(cache.absolute(), runs.absolute(), tuple(sorted(elsewhere)), state.absolute())
        folders._prepare()
        return folders

    def _prepare(self) -> None:
        if len(os.fsencode(self.runs)) > _RUN_PATH_LIMIT:
            raise BadInput(
                f"the folder for running jobs has too long a path for unix sockets: {self.runs}",
                hint="export COMPOSER_RUNS=/tmp/composer",
            )
        for folder in (self.cache, self.runs, self.state):
            check_utf8(folder)
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"cannot make the folder {folder}: {error.strerror}") from error
        # A folder under /tmp may have been made by somebody else, before us, on purpose; and `sudo` may keep
        # the HOME of the user who called it.
        _check_ours(self.cache, "COMPOSER_CACHE")
        _check_ours(self.state, "COMPOSER_STATE")
        _check_ours(self.runs, "COMPOSER_RUNS")
        self.runs.chmod(0o700)


def _check_ours(folder: Path, variable: str) -> None:
    """Raise BadInput if others may have put something into a folder that is to be ours alone."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise BadInput(f"{folder} is a symbolic link", hint=f"export {variable}={folder.resolve()}")
    if status.st_uid != os.getuid():
        raise BadInput(
            f"{folder} belongs to another user (uid {status.st_uid})",
            hint=f"export {variable}=FOLDER   a folder of your own",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(f"{folder} can be written to by others", hint=f"chmod go-w {folder}")


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.lstat().st_uid == os.getuid()


def check_utf8(path: Path) -> None:
    """Raise BadInput for a path that is no UTF-8: neither manifests nor libvirt's XML can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BadInput(f"the path {os.fsencode(path)!r} is no UTF-8") from None


def give_like(new: Path, like: Path) -> None:
    """Give a file the owner, mode, access list and label of the one whose place it is to take.

    Who is not root gives what he may: a group that he is in, and the rest.  Of another group nobody may
    anything, whatever the mode and the access list are.
    """
    with _opened_file(new) as ours, _opened_file(like, os.O_PATH) as theirs:
        # Not for others: file systems without owners, such as FAT, show another one for all files.
        if os.geteuid() == 0 and os.fstat(ours).st_uid != 0:
            raise PermissionError(errno.EPERM, "it was replaced by another user's file", str(new))
        status = os.fstat(theirs)
        for owner, group in ((status.st_uid if os.geteuid() == 0 else -1, -1), (-1, status.st_gid)):
            with suppress(OSError):  # EINVAL where a user namespace does not know the group
                os.fchown(ours, owner, group)
        mode, names = status.st_mode & 0o777, ["security.selinux"]
        if os.fstat(ours).st_gid == status.st_gid:
            names.append("system.posix_acl_access")
        else:  # what one group may do is not for another one
            mode &= 0o707
        os.fchmod(ours, mode)
        for name in names:
            with suppress(OSError):  # it has none, or the file system knows none
                os.setxattr(ours, name, os.getxattr(f"/proc/self/fd/{theirs}", name))


@contextmanager
def _opened_file(path: Path, how: int = os.O_RDONLY | os.O_NONBLOCK) -> Iterator[int]:
    """Open a regular file for the block, and follow no link; OSError if something else lies there.

    With O_PATH as ``how`` it can be looked at, which needs no leave to read it.
    """
    descriptor = os.open(path, how | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError(errno.EPERM, "it was replaced by what is no file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def fsync_path(path: Path) -> None:
    """Make a file's or a folder's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target`` so that a crash leaves the one or the other, whole.

    Raises OSError if what lies at ``new`` is no file, or is another one by the time of the rename.
    """
    with (
        _opened_file(new) as ours,
        _opened_folder(new.parent) as source,
        _opened_folder(target.parent) as place,
    ):
        os.fsync(ours)
        if not os.path.samestat(os.fstat(ours), os.stat(new.name, dir_fd=source, follow_symlinks=False)):
            raise PermissionError(errno.EPERM, "it was replaced by another file", str(new))
        os.rename(new.name, target.name, src_dir_fd=source, dst_dir_fd=place)
        os.fsync(place)


@contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reflinked(source: Path, target: Path) -> bool:
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            fcntl.ioctl(copy, _FICLONE, original.fileno())
        except OSError as error:
            if error.errno in _NO_REFLINK:
                return False
            raise
    return True


def copied(source: Path, target: Path) -> None:
    """Copy a file: its blocks shared where the file system can, else without its holes."""
    if _reflinked(source, target):
        return
    size = source.stat().st_size
    with source.open("rb") as original, target.open("wb") as copy:
        end = 0
        while (start := _next_data(original.fileno(), end, size)) < size:
            end = os.lseek(original.fileno(), start, os.SEEK_HOLE)
            copy.seek(start)
            while start < end:
                if not (sent := os.sendfile(copy.fileno(), original.fileno(), start, end - start)):
                    raise OSError(errno.EIO, "the file was cut short while it was copied", str(source))
                start += sent
        copy.truncate(size)


def _next_data(descriptor: int, offset: int, size: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # there is none after this
            raise
        return size


def has_reflinks(folder: Path) -> bool:
    """Whether files in a folder can share their blocks, as on btrfs and XFS; tried with two small ones."""
    with tempfile.TemporaryDirectory(prefix=".reflink.", dir=folder) as name:
        source = Path(name) / "source"
        source.write_bytes(bytes(4096))
        return _reflinked(source, Path(name) / "copy")


@contextmanager
def written_beside(target: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a path beside ``target``, published in its place where the block ends well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    os.fchmod(descriptor, mode)
    os.close(descriptor)
    new = Path(name)
    try:
        yield new
        publish(new, target)
    finally:
        new.unlink(missing_ok=True)


def half_made(folder: Path, pattern: str = ".*.new") -> Iterator[Path]:
    """Yield what was being written, or tried out, in a folder when its maker was killed."""
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > MAKING_SECONDS:
                yield path


def is_full(folder: Path) -> bool:
    """Whether the file system of a folder has no room left that is worth the name."""
    return shutil.disk_usage(folder).free < _ALMOST_NOTHING


def size_of(folder: Path) -> int:
    """Return what a folder takes, in bytes; what goes away meanwhile takes nothing."""
    size = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                size += Path(place, name).lstat().st_blocks * 512
    return size
