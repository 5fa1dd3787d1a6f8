"""The bootstrap image: what a helper VM boots from, made from a commit and kept by its content.

`root.squashfs` is the commit's tree, streamed from `ostree export` so that owners, modes and odd names
are right without root; `vmlinuz` is its kernel; `initramfs.img` is our own.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer import process
from composer.deadline import Deadline
from composer.errors import BadInput
from composer.helper.initramfs import LARGEST_MODULE, NEEDED, WELCOME, ModuleIndex, build_initramfs
from composer.repo.commit import Tree
from composer.repo.local import Repo
from composer.resources import bootstrap_file
from composer.store.cache import Cache, Entry, key_of

KIND = "bootstrap"
_FORMAT = 3
# Modules that some jobs need and that are loaded then, from the tree.
_OPTIONAL = ("9pnet_virtio", "virtiofs")
# What sqfstar may keep in memory; by default it is a quarter of the host's.
_PACKING_MEMORY = "1G"
# Each takes a few threads, and each thread a stack.
_PACKING_PROCESSORS = 16
_ROOT, _VMLINUZ, _INITRAMFS = "root.squashfs", "vmlinuz", "initramfs.img"


@dataclass(frozen=True)
class BootstrapImage:
    """A helper's kernel, initramfs and root, on the host."""

    entry: Entry
    fresh: bool

    @property
    def root(self) -> Path:
        """The read-only root, a squashfs."""
        return self.entry.path / _ROOT

    @property
    def vmlinuz(self) -> Path:
        """The kernel."""
        return self.entry.path / _VMLINUZ

    @property
    def initramfs(self) -> Path:
        """The initramfs, our own."""
        return self.entry.path / _INITRAMFS

    @property
    def clonable(self) -> bool:
        """Whether its kernel notices that it runs in a copy of a VM, and draws fresh randomness then."""
        return bool(self.entry.info["clonable"])

    def has_module(self, name: str) -> bool:
        """Whether its kernel has one of the modules that only some jobs need."""
        return name in self.entry.info["modules"]

    @property
    def programs(self) -> frozenset[str]:
        """The names of the programs that its tree has."""
        return frozenset(self.entry.info["programs"])


def cache_of(folder: Path) -> Cache:
    """Return the cache of bootstrap images."""
    return Cache(folder, KIND)


def _busybox() -> Path:
    path = Path(process.find_tool("busybox"))
    # A dynamically linked one names its loader, and there is none in the initramfs.
    if b"/ld-linux" in path.read_bytes():
        raise BadInput(
            f"{path} is not statically linked, and the helper needs it so", hint="apt install busybox-static"
        )
    return path


def _applets() -> list[str]:
    """Return the busybox applets that stand in where a tree lacks the program."""
    return bootstrap_file("applets").read_text().split()


def find_bootstrap(cache: Cache, commit: str) -> BootstrapImage | None:
    """Return the bootstrap image of a commit if there is one already."""
    entry = cache.find(key_of(inputs_of(commit)))
    return BootstrapImage(entry, fresh=False) if entry else None


def inputs_of(commit: str) -> dict[str, Any]:
    """Return all that goes into an image; its hash is the image's key."""
    return {
        "format": _FORMAT,
        "commit": commit,
        "busybox": _digest(_busybox().read_bytes()),
        "init": _digest(bootstrap_file("init").read_bytes()),
        "guest-init": _digest(bootstrap_file("guest-init").read_bytes()),
        "sshd_config": _digest(bootstrap_file("sshd_config").read_bytes()),
        "modules": [NEEDED, WELCOME],
        "applets": _applets(),
        "arch": platform.machine(),
    }


def build_bootstrap(cache: Cache, repo: Repo, commit: str, deadline: Deadline) -> BootstrapImage:
    """Return the bootstrap image of a commit, made now if there is none yet.

    Raises BadInput where the tree has no kernel, no sshd, or a kernel without the needed modules.
    """

    def make(folder: Path) -> dict[str, Any]:
        return _make(folder, repo, repo.tree(commit, deadline), deadline)

    entry, fresh = cache.get(inputs_of(commit), make, deadline)
    return BootstrapImage(entry, fresh)


def _make(folder: Path, repo: Repo, tree: Tree, deadline: Deadline) -> dict[str, Any]:
    """Fill the folder of a new image; return what to remember about it."""
    kernel = tree.kernel()
    programs = tree.programs()
    if "sshd" not in programs:
        raise BadInput(
            f"the tree {tree.commit[:12]} has no sshd, which the helper is reached through",
            hint="add openssh-server to it, or name another tree for the helper: [bootstrap] ref = ...",
        )
    modules = f"/usr/lib/modules/{kernel.version}"

    def read(path: str) -> bytes:
        return repo.read(tree.commit, path, deadline)

    def unzstd(content: bytes) -> bytes:
        return process.run(["zstd", "-dc"], stdin=content, deadline=deadline, largest=LARGEST_MODULE).stdout

    index = ModuleIndex.parse(
        read(f"{modules}/modules.dep").decode("utf-8", "replace"),
        read(f"{modules}/modules.builtin").decode("utf-8", "replace"),
    )
    initramfs = build_initramfs(
        busybox=_busybox().read_bytes(),
        applets=_applets(),
        init=bootstrap_file("init").read_bytes(),
        guest_init=bootstrap_file("guest-init").read_bytes(),
        sshd_config=bootstrap_file("sshd_config").read_bytes(),
        index=index,
        read_module=lambda path: read(path if path.startswith("/") else f"{modules}/{path}"),
        unzstd=unzstd,
    )
    (folder / _INITRAMFS).write_bytes(initramfs)
    (folder / _VMLINUZ).write_bytes(read(kernel.vmlinuz))
    processors = str(min(os.cpu_count() or 1, _PACKING_PROCESSORS))
    pack = ["sqfstar", "-quiet", "-no-progress", "-comp", "lz4", "-no-xattrs", "-mem", _PACKING_MEMORY]
    pack += ["-processors", processors]
    process.pipeline(repo.export_argv(tree.commit), [*pack, str(folder / _ROOT)], deadline=deadline)
    return {
        "commit": tree.commit,
        "kernel": kernel.version,
        "repo": repo.source,
        "programs": programs,
        "modules": [name for name in _OPTIONAL if index.has(name)],
        "clonable": index.has("vmgenid"),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
