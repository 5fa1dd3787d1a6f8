"""Files that somebody else may have put there: opened once, regular, no longer than they may be."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from composer.errors import BadInput

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not following a link, and not waiting for the other end of a FIFO.
_CAREFULLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def read_file(path: Path, largest: int, *, links: bool = False) -> bytes:
    """Return the content of a regular file.

    Raises FileNotFoundError if there is none, and BadInput if it cannot be read, is no regular file, or has
    more than ``largest`` bytes.  A symbolic link is refused too, unless ``links`` is given.
    """
    descriptor = open_regular(path, links=links)
    try:
        return read_open(descriptor, path, largest)
    finally:
        os.close(descriptor)


def open_regular(path: Path, *, links: bool = False) -> int:
    """Return a descriptor to read a regular file by; errors as in `read_file`."""
    try:
        descriptor = os.open(path, _CAREFULLY & ~os.O_NOFOLLOW if links else _CAREFULLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadInput(f"{path} is a symbolic link; a file of its own is expected there") from error
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(f"{path} is no regular file")
    return descriptor


def read_open(descriptor: int, path: Path, largest: int) -> bytes:
    """Return what an open file holds from its current position; ``path`` is for the errors of `read_file`."""
    data = bytearray()
    try:
        while chunk := os.read(descriptor, min(2**20, largest + 1 - len(data))):
            data += chunk
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    if len(data) > largest:
        raise BadInput(f"{path} is larger than {largest // 2**10} KiB, which it cannot be")
    return bytes(data)


def open_beneath(root: int, path: str, flags: int = _CAREFULLY) -> int:
    """Open a file below the folder ``root``, a descriptor, without following a link anywhere on the way."""
    *folders, name = path.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            here = _entered(here, folder)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def folder_beneath(root: Path, path: str) -> int:
    """Return a descriptor of a folder below ``root``, made if it is missing; no link is followed."""
    here = os.open(root, _FOLDER)
    try:
        for folder in filter(None, path.split("/")):
            try:
                here = _entered(here, folder)
            except FileNotFoundError:
                with suppress(FileExistsError):  # another thread was faster
                    os.mkdir(folder, 0o700, dir_fd=here)
                here = _entered(here, folder)
    except BaseException:
        os.close(here)
        raise
    return here


def own_folder(path: Path, like: int) -> int:
    """Return a descriptor of a folder that we have just made; BadInput if it is another's by now.

    ``like`` is a descriptor of another file that we have made on the same file system, whose owner counts:
    some file systems show the same one for all.
    """
    descriptor = os.open(path, _FOLDER)
    if os.fstat(descriptor).st_uid != os.fstat(like).st_uid:
        os.close(descriptor)
        raise BadInput(f"{path} was replaced by somebody else's folder as it was made")
    return descriptor


def _entered(folder: int, name: str) -> int:
    """Return a descriptor of a folder inside one whose descriptor is closed; on errors it stays open."""
    if name in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    inner = os.open(name, _FOLDER, dir_fd=folder)
    os.close(folder)
    return inner
