"""From a recipe and a resolved commit to a plan: everything a build needs to know, and nothing else.

A plan is frozen and has a digest; two plans with the same digest and commit make equal disks.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from composer.disk.layout import Layout, room_needed
from composer.errors import BadInput
from composer.recipe.load import LoadedRecipe
from composer.recipe.model import Firmware, Remote
from composer.recipe.values import show_size
from composer.repo.commit import Tree
from composer.repo.signatures import Trust
from composer.repo.upstream import is_url

# Counted up when the steps begin to make other disks of the same plan.
_FORMAT = 1


@dataclass(frozen=True)
class Account:
    """An account to be made, or root to be given keys."""

    name: str
    shell: str
    uid: int | None
    groups: tuple[str, ...]
    password_hash: str | None
    ssh_keys: tuple[str, ...]


@dataclass(frozen=True)
class ProductFile:
    """A file to be written into the new deployment."""

    path: str
    content: bytes
    mode: str
    owner: str
    group: str


@dataclass(frozen=True)
class Source:
    """Which commit goes where on the disk, as both a build and an update need it."""

    ref: str
    commit: str
    stateroot: str
    keep: int
    remote: str | None


@dataclass(frozen=True)
class Plan:
    """A disk to be made."""

    name: str
    source: Source
    remote_url: str | None
    trust: Trust
    kargs: tuple[str, ...]
    disk_size: int
    layout: Layout
    filesystem: str
    uuids: tuple[tuple[str, str], ...]
    hostname: str | None
    accounts: tuple[Account, ...]
    files: tuple[ProductFile, ...]

    @property
    def digest(self) -> str:
        """The hash of all that shapes the disk, the commit aside."""
        shape = {"format": _FORMAT, **asdict(self)}
        del shape["source"]["commit"]
        text = json.dumps(shape, sort_keys=True, default=lambda value: hashlib.sha256(value).hexdigest())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def firmware(self) -> Firmware:
        """What the disk boots under, by the partitions that its layout has."""
        bios, uefi = self.layout.number("bios"), self.layout.number("esp")
        return "bios+uefi" if bios and uefi else "bios" if bios else "uefi"


def make_plan(loaded: LoadedRecipe, repo_source: str, tree: Tree) -> Plan:
    """Return the plan for the commit of ``tree``.

    Raises BadInput where the commit cannot boot (no kernel, no initramfs) or does not fit the disk.
    """
    recipe = loaded.recipe
    remote = recipe.ostree.remote
    if remote is None and is_url(repo_source):
        # The repo that we pull from is one that the product can pull from too.
        remote = Remote(url=repo_source)
    layout = Layout.for_firmware(recipe.disk.firmware)
    check_bootable(tree)
    _check_size(recipe.disk.size, layout, tree)
    return Plan(
        name=recipe.name,
        source=Source(
            ref=recipe.ostree.ref,
            commit=tree.commit,
            stateroot=recipe.ostree.stateroot,
            keep=recipe.ostree.keep,
            remote=remote.name if remote else None,
        ),
        remote_url=remote.url if remote else None,
        trust=trust_of(loaded),
        kargs=recipe.ostree.kargs,
        disk_size=recipe.disk.size,
        layout=layout,
        filesystem=recipe.disk.filesystem,
        uuids=tuple(sorted(recipe.disk.uuids.model_dump(exclude_none=True).items())),
        hostname=recipe.system.hostname,
        accounts=tuple(
            Account(
                user.name, user.shell, user.uid, user.groups, user.password_hash, loaded.ssh_keys[user.name]
            )
            for user in recipe.users
        ),
        files=tuple(
            ProductFile(file.path, loaded.contents[file.path], file.mode, file.owner, file.group)
            for file in recipe.files
        ),
    )


def trust_of(loaded: LoadedRecipe) -> Trust:
    """Return the keys that a recipe names."""
    verify = loaded.recipe.ostree.verify
    if verify is None:
        return Trust()
    return Trust(loaded.gpg_keys, verify.ed25519_keys, verify.require_binding)


def check_bootable(tree: Tree) -> None:
    """Raise BadInput where a product of this commit could not boot."""
    kernel = tree.kernel()
    if kernel.initramfs is None:
        raise BadInput(
            f"commit {tree.commit[:12]} has no initramfs: no file "
            f"/usr/lib/modules/{kernel.version}/initramfs.img",
            hint="make it with ostree's dracut module when the tree is composed",
        )


def _check_size(size: int, layout: Layout, tree: Tree) -> None:
    needed = layout.overhead + room_needed(tree.content_bytes, tree.boot_bytes, deployments=2)
    if size < needed:
        mib = -(-needed // 2**20)
        raise BadInput(
            f"disk.size is {show_size(size)}, too small for commit {tree.commit[:12]}, "
            f"which needs {show_size(needed)} with room for an update",
            hint=f'[disk] size = "{mib} MiB"   or more',
        )
