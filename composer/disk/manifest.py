"""The manifest beside a disk: what is on it, where that came from, and what was done to it.

`DISK.manifest.json`.  Disk and manifest are two files and so two renames; a manifest that is about to
take effect waits as `.next` with the inode, size and time of the disk that it belongs to, and whoever
comes next knows by these whether the disk's rename happened, also where somebody booted the disk first.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from composer.disk.inuse import kept_from_vms
from composer.errors import BadInput, Busy, ComposerError
from composer.recipe.model import Firmware
from composer.recipe.values import Commit, Ed25519Key, HostPath, Ref, RemoteName, RepoPlace, Stateroot
from composer.store.files import read_file
from composer.store.folders import fsync_path, give_like, publish, written_beside

_FORMAT: Final = 2
_HISTORY = 100
NO_TABLE = "none"
_LARGEST = 2**22
_LARGEST_SIZE = 2**62
_MOST_VALUES = 10_000
# GPT's own limit (UEFI specification, 5.3.2).
_PARTITIONS = 128
# The longest beside a disk is that of a manifest in the making.
_LONGEST_NAME = 255 - len("..manifest.json.next.12345678.new")


# What becomes of an overlay that is to be the disk (compose/edit.py).
Flatten = Literal["auto", "always"]
PartitionRole = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Bytes = Annotated[int, Field(ge=0, le=_LARGEST_SIZE)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", max_length=64)]
Time = Annotated[str, Field(pattern=r"^[0-9TZ:-]{1,32}$")]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Data):
    """Tells a disk from what it becomes when anybody writes to it."""

    size: Bytes
    mtime_ns: int = Field(ge=-_LARGEST_SIZE, le=_LARGEST_SIZE)

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read it off a file."""
        status = path.stat()
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns)

    @classmethod
    def found(cls, path: Path) -> Self | None:
        """Read it off a file; None where there is none."""
        try:
            return cls.of(path)
        except FileNotFoundError:
            return None


class Deployment(_Data):
    """A deployment on the disk; the first one is the default."""

    commit: Commit
    serial: int = Field(ge=0, lt=2**31)
    # Of deployments that others made too: any name that a folder may have.
    stateroot: str = Field(pattern=r"^[^/\x00-\x1f\x7f]+$", max_length=255)
    refspec: str | None = Field(max_length=512)
    version: str | None = Field(max_length=128)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read what the guest's step `report` says of one; ComposerError where that is nonsense."""
        try:
            line.encode()
            commit, serial, stateroot, refspec, version = line.split(" ", 4)
            return cls(
                commit=commit,
                serial=int(serial[:10]),
                stateroot=stateroot,
                refspec=None if refspec == "-" else refspec,
                version=None if version == "-" else version[:128],
            )
        except ValueError as error:
            raise ComposerError(f"the helper reports a deployment that is none: {line[:100]!r}") from error


class Deed(_Data):
    """One thing done to the disk; ``bytes`` is what was moved into the helper."""

    time: Time
    what: str = Field(pattern=r"^[a-z][a-z-]{0,31}$")
    commit: Commit
    seconds: float = Field(ge=0, le=1e9)
    bytes: Bytes

    @classmethod
    def done(cls, what: str, commit: str, began: float, moved: int) -> Self:
        """Return the deed that ends now; ``began`` is on the monotonic clock, ``moved`` in bytes."""
        seconds = round(time.monotonic() - began, 2)
        return cls(time=_now(), what=what, commit=commit, seconds=seconds, bytes=moved)


class Keys(_Data):
    """What commits are verified with: keyrings in base64, ed25519 keys, also in base64; the ref binding."""

    gpg: tuple[Base64, ...] = ()
    ed25519: tuple[Ed25519Key, ...] = ()
    require_binding: bool = False


class TlsFiles(_Data):
    """Where the files lie that a repo behind TLS wants."""

    certificate: HostPath | None = None
    key: HostPath | None = None
    ca: HostPath | None = None


class Room(_Data):
    """The root file system, in bytes, as the last job left it."""

    size: Bytes
    free: Bytes


class HelperSettings(_Data):
    """The helper that worked on the disk, for the next one: a commit of the repo, and its size."""

    ref: Ref
    commit: Commit
    memory: int = Field(ge=2**28, le=2**40)
    cpus: int = Field(ge=1, le=64)


class Marks(_Data):
    """The disk's size in bytes as a guest sees it, and the GUID of its partition table.

    ``table`` is NO_TABLE where there is none, None where it is not known.
    """

    size: Bytes
    table: Annotated[str, Field(pattern=r"^([0-9a-f-]{36}|none)$")] | None


class Manifest(_Data):
    """All that `composer update DISK` needs to know besides the disk.

    ``written`` is when a job noticed that somebody else had written to the disk; only a build clears it.
    Format 1 had neither ``written`` nor ``marks``.
    """

    format: Literal[1, 2] = _FORMAT
    written: Time | None = None
    marks: Marks | None = None
    name: Name
    recipe: HostPath | None
    plan: str = Field(pattern=r"^[0-9a-f]{64}$")
    repo: RepoPlace
    ref: Ref
    stateroot: Stateroot
    remote: RemoteName | None
    keep: int = Field(ge=1, le=10)
    flatten: Flatten = "auto"
    keys: Keys = Keys()
    tls: TlsFiles = TlsFiles()
    firmware: Firmware
    partitions: dict[PartitionRole, Annotated[int, Field(ge=1, le=_PARTITIONS)]] = Field(max_length=16)
    helper: HelperSettings
    deployments: tuple[Deployment, ...] = Field(min_length=1, max_length=_PARTITIONS)
    disk: Identity
    root: Room | None = None
    inode: int | None = Field(default=None, ge=0, lt=2**64)
    history: tuple[Deed, ...] = Field(default=(), max_length=_HISTORY)

    @property
    def commit(self) -> str:
        """The commit of the default deployment."""
        return self.deployments[0].commit

    def fits(self, disk: Path) -> bool:
        """Whether nobody has written to the disk since this was written."""
        return self.disk == Identity.of(disk)

    def noticed(self, disk: Path) -> Manifest:
        """Return the manifest with a lasting note if somebody else has written to its disk."""
        if self.written is not None or self.fits(disk):
            return self
        return self.model_copy(update={"written": _now()})

    def after(self, deed: Deed, deployments: tuple[Deployment, ...], disk: Identity, root: Room) -> Manifest:
        """Return the manifest of the disk once something was done to it.

        Raises ComposerError where the default deployment is not the deed's commit.
        """
        if not deployments or deployments[0].commit != deed.commit:
            raise ComposerError("the helper does not report the new commit as the default deployment")
        history = (*self.history, deed)[-_HISTORY:]
        changes = {"deployments": deployments, "disk": disk, "root": root, "history": history}
        return self.model_copy(update=changes)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def manifest_path(disk: Path) -> Path:
    """Return where a disk's manifest lies."""
    return disk.with_name(f"{disk.name}.manifest.json")


def _next_path(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.manifest.json.next")


def _parse(path: Path) -> Manifest:
    mend = "put it back from a copy, or build the disk anew: composer build RECIPE --force"
    try:
        raw = read_file(path, _LARGEST)
    except BadInput as error:
        raise BadInput(f"the manifest of a disk: {error.message}", hint=mend) from error
    # Before it is parsed: each wrong value of a million would become an error of its own.
    if raw.count(b",") > _MOST_VALUES:
        raise BadInput(f"the manifest {path} is damaged: it has more values than any", hint=mend)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        if (found := _format_of(raw)) not in (None, 1, _FORMAT):
            raise BadInput(
                f"the manifest {path} has format {found}; this composer reads 1 to {_FORMAT}",
                hint="a newer composer wrote it: use that one",
            ) from error
        raise BadInput(f"the manifest {path} is damaged: {_first_fault(error)}", hint=mend) from error
    return manifest.model_copy(update={"format": _FORMAT})


def _format_of(raw: bytes) -> int | None:
    """Return the format that a manifest says it has; None where it says none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    found = value.get("format") if isinstance(value, dict) else None
    return found if isinstance(found, int) and 0 <= found < 10**6 else None


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def changed(manifest: Manifest, changes: dict[str, object]) -> Manifest:
    """Return a manifest with some fields changed; BadInput if a value is none that a manifest may have."""
    try:
        return Manifest.model_validate(manifest.model_dump() | changes)
    except ValidationError as error:
        raise BadInput(_first_fault(error)) from error


def load_manifest(disk: Path) -> Manifest | None:
    """Return the manifest of a disk, or None where it has none.

    One that waits for its disk counts if the disk is already there.  Raises BadInput for a damaged one.
    """
    waiting = _waiting(disk)
    if waiting is not None:
        return waiting
    try:
        return _parse(manifest_path(disk))
    except FileNotFoundError:
        return None


def settle(disk: Path) -> None:
    """Finish or drop what a killed composer left half done; call it with the disk's lock held."""
    waiting = _next_path(disk)
    for name in (waiting.name, manifest_path(disk).name):
        for left in disk.parent.glob(f".{glob.escape(name)}.????????.new"):
            left.unlink()
    if not waiting.exists():
        return
    if _waiting(disk) is not None:
        publish(waiting, manifest_path(disk))
    else:
        waiting.unlink()


def _waiting(disk: Path) -> Manifest | None:
    """Return the manifest that waits for its disk, where that is there."""
    try:
        manifest, status = _parse(_next_path(disk)), disk.stat()
    # Its writing was cut off, so the disk was not renamed either; or there is none, or no disk.
    except (BadInput, FileNotFoundError):
        return None
    if manifest.fits(disk):
        return manifest
    # Written to since, as by a boot; a file that took over a freed inode is a rare thing, and older.
    written = manifest.inode == status.st_ino and status.st_mtime_ns >= manifest.disk.mtime_ns
    return manifest if written else None


def publish_manifest(disk: Path, manifest: Manifest) -> None:
    """Put a manifest beside a disk that itself stays as it is."""
    _write(manifest, manifest_path(disk), manifest_path(disk))


def _write(manifest: Manifest, target: Path, before: Path) -> None:
    """Write a manifest to ``target``, with owner and mode of the one that lay at ``before``, if any."""
    with written_beside(target) as new:
        new.write_text(json.dumps(manifest.model_dump(), indent=1) + "\n")
        _parse(new)  # what cannot be read back would be dropped, and the disk have none
        if before.exists():
            give_like(new, before)


def check_place(disk: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise BadInput where no other file can take the place of a disk, however good it is.

    ``mounts`` is a table as proc(5) has it.
    """
    if len(os.fsencode(disk.name)) > _LONGEST_NAME:
        raise BadInput(f"the name of {disk} is too long: files beside it would have names above 255 bytes")
    if not disk.exists():
        return
    if not disk.is_file():
        raise BadInput(f"{disk} is no file")
    folder, owner = disk.parent.stat(), disk.stat().st_uid
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, owner, folder.st_uid):
        raise BadInput(f"{disk} is another user's, and {disk.parent} lets only him replace it")
    # Space, tab, line end and backslash are in octal there.
    name = re.sub(rb"[ \t\n\\]", lambda odd: b"\\%03o" % odd[0][0], os.fsencode(disk))
    if any(mount.split(b" ")[4] == name for mount in mounts.read_bytes().splitlines()):
        raise BadInput(f"{disk} is a mount of its own, which no other file can take the place of")


def check_folders_of_root(folder: Path) -> None:
    """Raise BadInput if others could put another file or folder where root is about to write.

    Above the folder itself a sticky one such as /tmp is no danger: only root can rename what is root's.
    """
    for place in (folder, *folder.parents):
        status = place.stat()
        is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        is_sticky = place != folder and status.st_mode & stat.S_ISVTX and status.st_uid == 0
        if status.st_uid != 0 or (is_shared and not is_sticky):
            raise BadInput(
                f"others can write to {place}, and could put files of theirs in the way of root's",
                hint="run composer as the user whose folder it is, or use a folder that is root's alone; "
                "--trust-folder   takes it all the same",
            )


def publish_disk(
    new: Path, disk: Path, manifest: Manifest, check: Callable[[], None] = lambda: None
) -> Manifest:
    """Put a finished disk and its manifest in place, and return that; a crash leaves the old pair or the new.

    ``manifest.disk`` must be the identity of ``new``, which lies in the folder of ``disk``.  ``check`` may
    raise at the last moment, when only the rename is left; nothing has changed then, and BadInput and Busy
    become another error, for a VM has run.  The new disk gets owner and mode of the composer's disk whose
    place it takes; what else lay there may have been open to anybody.
    """
    manifest = manifest.model_copy(update={"inode": new.stat().st_ino})
    fsync_path(new)  # it may take long, so before the check
    _write(manifest, _next_path(disk), manifest_path(disk))
    try:
        try:
            check()
            # A VM that starts now finds the old disk locked, or the new one in its place.
            with kept_from_vms(disk):
                if disk.is_file() and manifest_path(disk).exists():
                    give_like(new, disk)
                publish(new, disk)
        except (BadInput, Busy) as error:
            raise ComposerError(error.message, hint=error.hint) from error
    finally:
        # Whatever came in between, an interrupt also: it counts if the rename happened, and goes if not.
        settle(disk)
    return manifest
