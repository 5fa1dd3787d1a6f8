"""The helper's own initramfs: busybox, the shipped /init, and a few modules of the tree's kernel.

Written as a cpio archive of the kernel's "newc" form (Documentation/driver-api/early-userspace/
buffer-format.rst).
"""

from __future__ import annotations

import lzma
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from composer.errors import BadInput

# What it takes to find and mount the root image.  None may be missing, be it built in or a module.
NEEDED = ("virtio_pci", "virtio_scsi", "sd_mod", "virtio_console", "squashfs", "overlay")
# What makes the helper better where the kernel has it.
WELCOME = ("virtio_rng", "vmgenid")
# In bytes, unpacked; the largest of Debian's has 5 MiB.
LARGEST_MODULE = 2**26


class Cpio:
    """A cpio archive in the making; everything in it belongs to root."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._number = 0
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        encoded = name.encode() + b"\0"
        self._number += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder and those above it, once each."""
        for parent in [*reversed(PurePosixPath(path).parents), PurePosixPath(path)]:
            name = str(parent)
            if name != "." and name not in self._folders:
                self._folders.add(name)
                self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file, and the folders above it."""
        self.folder(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def bytes(self) -> bytes:
        """Return the archive, ended and padded so that another may follow."""
        whole = Cpio()
        whole._data = bytearray(self._data)
        whole._entry("TRAILER!!!", 0, b"")
        whole._data += b"\0" * (-len(whole._data) % 512)
        return bytes(whole._data)


@dataclass(frozen=True)
class ModuleIndex:
    """The modules of one kernel: which there are, what each depends on, what is built in."""

    dependencies: dict[str, tuple[str, ...]]
    builtin: frozenset[str]

    @classmethod
    def parse(cls, modules_dep: str, modules_builtin: str) -> ModuleIndex:
        """Read the two files that depmod writes into a kernel's folder of modules."""
        dependencies = {}
        for line in modules_dep.splitlines():
            path, colon, rest = line.partition(":")
            if colon:
                dependencies[path] = tuple(rest.split())
        return cls(dependencies, frozenset(_module_name(line) for line in modules_builtin.splitlines()))

    def has(self, name: str) -> bool:
        """Whether the kernel has a module, loadable or built in."""
        return name in self.builtin or any(_module_name(path) == name for path in self.dependencies)

    def load_order(self) -> list[str]:
        """Return the paths of the modules to load, dependencies first.

        Raises BadInput naming every needed module that the kernel lacks.
        """
        by_name = {_module_name(path): path for path in self.dependencies}
        lacking = [name for name in NEEDED if name not in by_name and name not in self.builtin]
        if lacking:
            raise BadInput(
                f"the kernel of the helper's tree lacks {', '.join(lacking)}",
                hint="bootstrap.ref names another tree of the same repo for the helper",
            )
        order: list[str] = []
        for name in (*NEEDED, *WELCOME):
            if name in by_name:
                path = by_name[name]
                # modules.dep lists all dependencies of a module, the deepest last.
                for needed in (*reversed(self.dependencies[path]), path):
                    if needed not in order:
                        order.append(needed)
        return order


def _module_name(path: str) -> str:
    """Return a module's name: kmod takes '-' and '_' for the same."""
    return PurePosixPath(path).name.split(".ko", 1)[0].replace("-", "_")


def _decompressed(path: str, content: bytes, unzstd: Callable[[bytes], bytes]) -> bytes:
    # insmod of busybox hands the file to the kernel, which may not know the compression.
    if path.endswith(".ko.zst"):
        return unzstd(content)
    if not path.endswith((".ko.xz", ".ko.gz")):
        return content
    unpacker: lzma.LZMADecompressor | zlib._Decompress
    try:
        if path.endswith(".ko.xz"):
            unpacker = lzma.LZMADecompressor(memlimit=LARGEST_MODULE)
        else:
            unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # with gzip's header
        module = unpacker.decompress(content, LARGEST_MODULE)
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"the kernel module {path} is damaged: {error}") from error
    if not unpacker.eof:
        raise BadInput(f"the kernel module {path} is cut short, or larger than any module")
    return module


def build_initramfs(
    *,
    busybox: bytes,
    applets: list[str],
    init: bytes,
    guest_init: bytes,
    sshd_config: bytes,
    index: ModuleIndex,
    read_module: Callable[[str], bytes],
    unzstd: Callable[[bytes], bytes],
) -> bytes:
    """Return the initramfs of a tree's kernel; no secret is in it."""
    archive = Cpio()
    for folder in ("dev", "proc", "sys", "run", "etc"):
        archive.folder(folder)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in applets:
        archive.link(f"bin/{applet}", "busybox")
    archive.file("init", init, 0o755)
    archive.file("guest-init", guest_init, 0o755)
    archive.file("sshd_config", sshd_config, 0o600)
    names = []
    for path in index.load_order():
        names.append(f"{_module_name(path)}.ko")
        archive.file(f"modules/{names[-1]}", _decompressed(path, read_module(path), unzstd))
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    return archive.bytes()
