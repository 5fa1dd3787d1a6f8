"""What a commit holds, as `ostree ls` lists it.

Nothing of a commit is mounted or run on the host, and no path of a commit is followed there: paths are
looked up in the commit's own listing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from composer.errors import BadInput

# `ostree ls -R`: type and mode, uid, gid, size, path; links add ' -> target'.
_LISTED = re.compile(r"^([-dl])(0[0-7]{4}) +(\d+) +(\d+) +(\d+) (/.*)$", re.DOTALL)
# `ostree ls -R -C`: the same with checksums before the path, two of a folder (dirtree and dirmeta).
_SUMS = re.compile(r"^([-dl])0[0-7]{4} +\d+ +\d+ +\d+ ([0-9a-f]{64})(?: ([0-9a-f]{64}))? /", re.MULTILINE)
MODULES = "/usr/lib/modules"


@dataclass(frozen=True)
class Listed:
    """One path of a commit: ``type`` is '-', 'd' or 'l'; ``size`` in bytes."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str | None


@dataclass(frozen=True)
class Kernel:
    """The kernel of a commit; ``initramfs`` is None where it brings none of its own."""

    version: str
    vmlinuz: str
    initramfs: str | None


@dataclass(frozen=True)
class Tree:
    """Everything that a commit holds, by path."""

    commit: str
    paths: dict[str, Listed]

    def programs(self) -> list[str]:
        """Return the names of all programs that PATH would find."""
        folders = {"/usr/bin", "/usr/sbin", "/bin", "/sbin"}
        return sorted({path.rpartition("/")[2] for path in self.paths if path.rpartition("/")[0] in folders})

    @property
    def content_bytes(self) -> int:
        """The room its files take on a file system with 4 KiB blocks, an inode each included."""
        blocks = sum((item.size + 4095) // 4096 * 4096 for item in self.paths.values() if item.type == "-")
        return blocks + 512 * len(self.paths)

    @property
    def boot_bytes(self) -> int:
        """What a deployment copies to /boot: the sizes of kernel and initramfs."""
        kernel = self.kernel()
        return sum(self.paths[path].size for path in (kernel.vmlinuz, kernel.initramfs) if path)

    def kernel(self) -> Kernel:
        """Return the commit's kernel, as ostree finds it (ostree-sysroot-deploy.c, get_kernel_layout).

        Raises BadInput where there is none, or more than one.
        """
        pattern = re.compile(rf"^{MODULES}/([^/]+)/vmlinuz$")
        versions = sorted(found[1] for path in self.paths if (found := pattern.match(path)))
        if not versions:
            raise BadInput(
                f"commit {self.commit[:12]} has no kernel: no file {MODULES}/VERSION/vmlinuz",
                hint="put the kernel there when the tree is composed (ostree admin deploy wants it so)",
            )
        if len(versions) > 1:
            raise BadInput(f"commit {self.commit[:12]} has {len(versions)} kernels: {', '.join(versions)}")
        folder = f"{MODULES}/{versions[0]}"
        initramfs = f"{folder}/initramfs.img"
        return Kernel(versions[0], f"{folder}/vmlinuz", initramfs if initramfs in self.paths else None)


def parse_listing(commit: str, text: str) -> Tree:
    """Read what `ostree ls -R` printed of a commit."""
    paths: dict[str, Listed] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        # A path with a newline goes on in a line that does not look like an entry.
        if _LISTED.match(line) or not lines:
            lines.append(line)
        elif line:
            lines[-1] += "\n" + line
    for line in lines:
        if found := _LISTED.match(line):
            kind, mode, uid, gid, size, path = found.groups()
            name, arrow, target = path.partition(" -> ") if kind == "l" else (path, "", "")
            paths[name] = Listed(kind, int(mode, 8), int(uid), int(gid), int(size), target if arrow else None)
    return Tree(commit, paths)


def parse_objects(text: str) -> frozenset[str]:
    """Return the objects that `ostree ls -R -C` names, as `CHECKSUM.TYPE`.

    A path with a newline can look like an entry of its own; what it names is no object of the commit, and
    whoever copies objects meets that as one that is not there.
    """
    objects = set()
    for kind, first, second in _SUMS.findall(text):
        if kind == "d":
            objects |= {f"{first}.dirtree", f"{second}.dirmeta"}
        else:
            objects.add(f"{first}.file")
    return frozenset(objects)
