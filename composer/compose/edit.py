"""The commit protocol of whatever changes a disk: on an overlay, checked, and then in one rename.

docs/safety.md has each point at which it may be cut off, and what is found then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from composer.compose.build import deployments_of, room_of, warn_of_hidden
from composer.compose.target import overlay_target
from composer.compose.workshop import Workshop
from composer.deadline import Deadline
from composer.disk import image
from composer.disk.inuse import check_unused
from composer.disk.manifest import Deed, Deployment, Identity, Manifest, check_place, publish_disk
from composer.disk.marks import marks_of
from composer.disk.qcow2 import check_chain, check_disk, overlays_on
from composer.disk.tables import mapped_bytes
from composer.errors import BadInput, ComposerError
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Disk, layers
from composer.helper.job import JobResult
from composer.helper.lease import Helper, HelperShape
from composer.store.work import Work

# To compare takes a second for some gigabytes, so disks up to this size always are (docs/performance.md).
_COMPARED_BYTES = 2**30


@dataclass(frozen=True)
class Edit:
    """A change of a disk: ``act`` makes it in a helper that has the overlay attached.

    ``commit`` is to be the default afterwards, None where that is for the helper to find out; ``moved`` tells
    the bytes brought in, once it is done.
    """

    verb: str
    commit: str | None
    act: Callable[[Helper], JobResult]
    moved: Callable[[], int] = lambda: 0
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Edited:
    """What a change came to; sizes in bytes, as the host's file system counts them."""

    manifest: Manifest
    size: int
    growth: int
    pruned: tuple[Deployment, ...]


def carry_out(
    workshop: Workshop,
    work: Work,
    folder: Path,
    manifest: Manifest,
    helper: tuple[BootstrapImage, HelperShape],
    edit: Edit,
) -> Edited:
    """Change a disk; ``folder`` lies beside it, ``manifest`` is what holds of it but for the change.

    Until the new disk is finished and checked, the old one stays as it is, byte for byte.
    """
    disk, (bootstrap, shape) = work.disk, helper
    manifest = manifest.noticed(disk).model_copy(update={"marks": marks_of(disk)})
    overlay, new = folder / "overlay.qcow2", folder / disk.name
    before, room = _standing(disk), image.taken(disk)
    check_replaceable(disk, edit.verb)
    warn_of_hidden(workshop, disk, edit.verb)

    def unchanged() -> None:
        check_unused(disk)
        check_replaceable(disk, edit.verb)
        if _standing(disk) != before:
            raise ComposerError(
                f"{disk} was changed by somebody else while the {edit.verb} ran",
                disk="the disk is as that other program left it; the work on it was dropped",
                hint=f"composer {edit.verb} {disk}   once nothing else uses it",
            )

    target = overlay_target(overlay, disk, workshop.deadline)
    with (
        workshop.bench(f"{edit.verb} {disk.name}", bootstrap, work) as bench,
        workshop.helper(bench, shape) as running,
    ):
        running.machine.attach(target)
        result = edit.act(running)
        with workshop.reporter.phase("detach", "detaching the disk"):
            running.machine.detach(target, workshop.deadline)
    with workshop.reporter.phase("publish", "flattening, checking and putting the disk in place"):
        _write_new(target, new, manifest, workshop)
        size = image.taken(new)
        deployments = deployments_of(result)
        commit = edit.commit or (deployments[0].commit if deployments else "")
        deed = Deed.done(edit.verb, commit, edit.began, edit.moved())
        after = manifest.after(deed, deployments, Identity.of(new), room_of(result))
        after = publish_disk(new, disk, after, unchanged)
    left = {(deployment.commit, deployment.stateroot) for deployment in after.deployments}
    pruned = [known for known in manifest.deployments if (known.commit, known.stateroot) not in left]
    return Edited(after, size, size - room, tuple(pruned))


def check_replaceable(disk: Path, verb: str) -> None:
    """Raise BadInput where another file in the place of a disk would lose or harm something."""
    check_place(disk)
    header = check_disk(disk)
    if header.snapshots:
        raise BadInput(
            f"{disk} has internal snapshots, which the {verb} would lose",
            hint=f"qemu-img snapshot -l {disk}   lists them, -d NAME deletes one",
        )
    if header.bitmaps:
        raise BadInput(
            f"{disk} has persistent dirty bitmaps, which the {verb} would lose",
            hint=f"qemu-img info {disk}   lists them, qemu-img bitmap --remove {disk} NAME   removes one",
        )
    if overlays := overlays_on(disk):
        names = ", ".join(path.name for path in overlays[:3])
        raise BadInput(
            f"{disk} is the base of {names}, which the {verb} would make unreadable",
            hint=f"composer {verb} {overlays[0]}   changes that one and leaves its base alone",
        )


def room_for(disk: Path, manifest: Manifest, deadline: Deadline) -> int:
    """Return the bytes that a new disk in the place of one may take, what an update brings aside."""
    bases = check_chain(disk).bases if manifest.flatten == "always" else ()
    return sum(max(path.stat().st_size, mapped_bytes(path, deadline)) for path in (disk, *bases))


def _standing(disk: Path) -> list[tuple[int, Identity]]:
    """Return inodes and identities of a disk and of the files below it."""
    return [(path.stat().st_ino, Identity.of(path)) for path in (disk, *check_chain(disk).bases)]


def _write_new(target: Disk, new: Path, manifest: Manifest, workshop: Workshop) -> None:
    """Write what an overlay shows as the new disk, checked, by the policy ``flatten`` of the manifest.

    It is made of the very files that the helper was given.
    'auto': a disk that stood on a base still does, on the same one, and no deeper; any other stands alone.
    'always': it stands alone.
    """
    overlay, deadline = target.path, workshop.deadline
    disk, *bases = [layer.path for layer in layers(target.backing)]
    image.check(overlay, "what the helper wrote", deadline)
    if manifest.flatten == "always" or not bases:
        image.flatten(overlay, [disk, *bases], new, deadline)
        below: list[Path] = []
    else:
        image.merge(overlay, disk, bases, new, deadline)
        below = bases
    image.check(new, "the new disk", deadline)
    if workshop.options.paranoid or image.taken(new) <= _COMPARED_BYTES:
        image.compare(overlay, [disk, *bases], new, below, deadline)
