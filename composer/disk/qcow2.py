"""The gate for disks from outside: their qcow2 header is read here before any QEMU tool opens them.

A qcow2 file names other files (its backing file, an external data file), and QEMU opens what it names.
So what a header may say is checked first, by the format's specification (docs/interop/qcow2.txt of
QEMU), on a bounded part of the file.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from composer.errors import BadInput

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _COMPRESSION | _EXTENDED_L2
_EXT_END, _EXT_BACKING_FORMAT, _EXT_DATA_FILE, _EXT_BITMAPS = 0, 0xE2792ACA, 0x44415441, 0x23852875
_LARGEST_L1 = 32 * 2**20 // 8  # QCOW_MAX_L1_SIZE
_LARGEST_REFTABLE = 8 * 2**20  # QCOW_MAX_REFTABLE_SIZE
_LARGEST_DISK = 64 * 2**40
_LARGEST_OFFSET = 2**56  # of a cluster in a file
_DEEPEST_CHAIN = 8
_LONGEST_NAME = 1023
# "proto:" before any slash is how QEMU tells protocols from paths.
_PROTOCOL = re.compile(r"^[^/]*:")
# In a name of the form json:{...}.
_JSON_FILENAME = re.compile(r'"(?:file\.)*filename"\s*:\s*"([^"]*)"')


@dataclass(frozen=True)
class Header:
    """What a qcow2 header says, as far as it concerns us.

    ``size`` is the virtual one, in bytes; ``l1_size`` is the number of entries of the table at ``l1_offset``.
    """

    version: int
    size: int
    cluster_bits: int
    backing: str | None
    backing_format: str | None
    dirty: bool
    snapshots: int = 0
    bitmaps: int = 0
    l1_size: int = 0
    l1_offset: int = 0
    extended_l2: bool = False


@dataclass(frozen=True)
class Checked:
    """A disk that is safe to hand to QEMU: its header, and the files below it, nearest first."""

    header: Header
    bases: tuple[Path, ...]


def check_disk(path: Path) -> Header:
    """Return the header of a qcow2 disk; errors as `check_chain`."""
    return check_chain(path).header


def read_header(path: Path) -> Header:
    """Return the header of one qcow2 file, whatever it names below it; errors otherwise as `check_chain`."""
    return _read(path, set())


def check_chain(path: Path) -> Checked:
    """Check the header of a qcow2 disk, and those of the files below it.

    QEMU must be given just these files (`image.node`): by itself it takes a base's name from where the disk
    was named, which may be another folder.
    Raises BadInput where the file is missing or no qcow2, names other files than overlays' bases in
    its own folder, or has features or sizes that no honest disk has.
    """
    seen: set[tuple[int, int]] = set()
    header = _read(path, seen)
    # Names are relative to the folder in which the file itself lies, whatever link led to it.
    above, current = path.resolve(), header
    bases: list[Path] = []
    for _ in range(_DEEPEST_CHAIN + 1):
        if current.backing is None:
            return Checked(header, tuple(bases))
        above = _base_of(above, current)
        bases.append(above)
        current = _read(above, seen)
    raise BadInput(f"{path} has more than {_DEEPEST_CHAIN} backing files below it")


def overlays_on(disk: Path) -> list[Path]:
    """Return the disks in the folder of ``disk`` that stand on it, whatever else is wrong with them."""
    found = []
    for path in disk.parent.iterdir():
        if path.is_file() and path != disk:
            with suppress(OSError):
                # QEMU takes a name from where the overlay was named, which may be a link to it.
                folders = {path.parent, path.resolve().parent}
                names = _named_bases(path)
                if any(_is(disk, folder / name) for folder in folders for name in names):
                    found.append(path)
    return sorted(found)


def hidden_beside(disk: Path) -> list[Path]:
    """Return the files in the folder of ``disk`` that cannot be read: what they stand on is not known."""
    files = (path for path in disk.parent.iterdir() if path.is_file())
    return sorted(path for path in files if not os.access(path, os.R_OK))


def _is(disk: Path, path: Path) -> bool:
    with suppress(OSError, ValueError):  # there is none, or no path can be so
        return path.samefile(disk)
    return False


def _named_bases(path: Path) -> list[str]:
    """Return the files that a qcow2 disk may name as what it stands on, in the forms that QEMU takes."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if head[:4] != _MAGIC or len(head) < _HEADER.size:
            return []
        _, _, offset, length, *_ = _HEADER.unpack(head)
        if not offset or length > _LONGEST_NAME or offset > 2**21:  # it lies in the first cluster
            return []
        file.seek(offset)
        name = os.fsdecode(file.read(length))
    return _names_in(name)


def _names_in(name: str) -> list[str]:
    """Return the files that a name of a backing file may stand for, in any of the forms that QEMU takes."""
    if not name.startswith("json:"):
        return [name.removeprefix("file:")]
    try:
        return _filenames(json.loads(name.removeprefix("json:")))
    except (ValueError, RecursionError):  # QEMU's parser takes more than this one
        return _JSON_FILENAME.findall(name)


def _filenames(value: object) -> list[str]:
    """Return what stands behind a key `filename`, or one that ends so, anywhere in JSON."""
    if isinstance(value, list):
        return [name for item in value for name in _filenames(item)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        if isinstance(inner, str):
            is_file = key.rpartition(".")[2] in ("filename", "file", "backing")
            found += _names_in(inner) if is_file else []
        else:
            found += _filenames(inner)
    return found


def _base_of(above: Path, header: Header) -> Path:
    name = header.backing or ""
    if _PROTOCOL.match(name) or "\0" in name:
        raise BadInput(f"{above} names the backing file {name[:80]!r}, which is no plain path: refused")
    if header.backing_format != "qcow2":
        raise BadInput(
            f"{above} has a backing file of format {header.backing_format or 'unknown'}; only qcow2 is used",
            hint=f"qemu-img rebase -u -f qcow2 -F qcow2 -b BASE {above}   names the format",
        )
    folder = above.parent.resolve()
    try:
        base = (folder / name).resolve()
    except (RuntimeError, OSError) as error:
        raise BadInput(f"{above} names the backing file {name[:80]!r}, which leads nowhere") from error
    if base.parent != folder:
        raise BadInput(
            f"{above} has its backing file outside its own folder: {base}",
            hint=f"qemu-img convert -f qcow2 -O qcow2 {above} FLAT.qcow2   makes a disk of its own, "
            "if you trust both files",
        )
    return base


def _read(path: Path, seen: set[tuple[int, int]]) -> Header:
    try:
        # O_NONBLOCK: a FIFO must not make us wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise BadInput(f"no such disk: {path}", hint="composer build RECIPE   makes one") from error
    except OSError as error:
        raise BadInput(f"cannot read the disk {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is no regular file")
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            raise BadInput(f"{path} is its own backing file")
        seen.add(identity)
        return _parse(path, os.pread(descriptor, 2**16, 0))
    finally:
        os.close(descriptor)


def _parse(path: Path, raw: bytes) -> Header:
    if raw[:4] != _MAGIC or len(raw) < _HEADER.size:
        raise BadInput(
            f"{path} is no qcow2 disk",
            hint=f"if it is a raw one: qemu-img convert -f raw -O qcow2 {path} {path}.qcow2",
        )
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_size, l1_offset,
     _ref_offset, ref_clusters, snapshots, _snapshots_offset) = _HEADER.unpack_from(raw)  # fmt: skip
    if version not in (2, 3):
        raise BadInput(f"{path} is a qcow2 disk of version {version}; 2 and 3 are known")
    features, header_length = 0, _HEADER.size
    if version == 3:
        if len(raw) < _HEADER.size + _HEADER_V3.size:
            raise BadInput(f"{path} is cut off in its header")
        features, _compatible, _autoclear, _ref_order, header_length = _HEADER_V3.unpack_from(
            raw, _HEADER.size
        )
    faults = []
    if crypt:
        faults.append("it is encrypted")
    if features & _DATA_FILE:
        faults.append("it keeps its data in another file")
    if features & ~(_KNOWN | _DATA_FILE):
        faults.append(f"it has features unknown here ({features & ~(_KNOWN | _DATA_FILE):#x})")
    if features & _CORRUPT:
        faults.append("it is marked corrupt (qemu-img check -r all)")
    if not 9 <= cluster_bits <= 21:
        faults.append(f"its clusters have 2^{cluster_bits} bytes")
    if size > _LARGEST_DISK or l1_size > _LARGEST_L1 or l1_offset > _LARGEST_OFFSET:
        faults.append("its size is absurd")
    elif 9 <= cluster_bits <= 21 and ref_clusters << cluster_bits > _LARGEST_REFTABLE:
        faults.append("its reference count table is absurdly large")
    # QEMU reads extensions up to the name: one that lies before them would hide what they say.
    if backing_offset and not (
        0 < backing_length <= _LONGEST_NAME and header_length <= backing_offset <= len(raw) - backing_length
    ):
        faults.append("its backing file name lies where none can")
    if not _HEADER.size <= header_length <= len(raw):
        faults.append("its header length is impossible")
    if faults:
        raise BadInput(f"{path} is refused: {'; '.join(faults)}")
    extensions = _extensions(path, raw, header_length if version == 3 else _HEADER.size, backing_offset)
    if _EXT_DATA_FILE in extensions:
        raise BadInput(f"{path} is refused: it names an external data file")
    name = raw[backing_offset : backing_offset + backing_length] if backing_offset else b""
    form = extensions.get(_EXT_BACKING_FORMAT)
    return Header(
        version=version,
        size=size,
        cluster_bits=cluster_bits,
        backing=os.fsdecode(name) if name else None,
        backing_format=form.decode("ascii", "replace") if form is not None else None,
        dirty=bool(features & _DIRTY),
        snapshots=snapshots,
        bitmaps=int.from_bytes(extensions.get(_EXT_BITMAPS, b"")[:4], "big"),
        l1_size=l1_size,
        l1_offset=l1_offset,
        extended_l2=bool(features & _EXTENDED_L2),
    )


def _extensions(path: Path, raw: bytes, start: int, backing_offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    end = backing_offset or len(raw)
    position = start
    while position + 8 <= end:
        kind, length = struct.unpack_from(">II", raw, position)
        if kind == _EXT_END:
            break
        if position + 8 + length > len(raw):
            raise BadInput(f"{path} is refused: a header extension runs out of the header")
        found[kind] = raw[position + 8 : position + 8 + length]
        position += 8 + (length + 7) // 8 * 8
    return found
