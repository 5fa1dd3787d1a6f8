"""`composer inspect`: what is on a disk, by its manifest and, if asked, by looking into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer.compose import steps
from composer.compose.build import deployments_of
from composer.compose.target import overlay_target
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Workshop
from composer.disk import image
from composer.disk.qcow2 import check_disk
from composer.helper.job import Job, run_job
from composer.helper.lease import HelperShape


def describe(disk: Path) -> dict[str, Any]:
    """Return what the manifest and the file itself tell; no VM is started."""
    header = check_disk(disk)
    manifest = known_disk(disk)
    status = disk.stat()
    said: dict[str, Any] = manifest.model_dump(exclude={"disk"})
    said["disk"] = str(disk)
    said["commit"] = manifest.commit
    said["unchanged"] = manifest.fits(disk)
    said["sizes"] = {
        "virtual": header.size,
        "file": status.st_size,
        "allocated": image.taken(disk),
    }
    return said


def look_into(workshop: Workshop, disk: Path, *, fsck: bool = False) -> dict[str, Any]:
    """Return what a helper finds on the disk; it is looked at through an overlay, not written to.

    With ``fsck``, its file system and every object of its repo are checked too; GuestStepFailed where one is
    damaged.
    """
    manifest = known_disk(disk)
    wanted = steps.FSCK_STEPS if fsck else steps.INSPECT_STEPS
    bootstrap = bootstrap_for(workshop, manifest, None, wanted)
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    job = Job(wanted, steps.partition_data(manifest.partitions))
    with workshop.work(disk, "inspect") as work, workshop.folder(work, replaces=False) as folder:
        target = overlay_target(folder / "overlay.qcow2", disk, workshop.deadline)
        with (
            workshop.bench(f"inspect {disk.name}", bootstrap, work) as bench,
            workshop.helper(bench, shape) as helper,
        ):
            helper.machine.attach(target)
            result = run_job(helper.shell, job, workshop.reporter, workshop.deadline)
    return {
        "deployments": [deployment.model_dump() for deployment in deployments_of(result)],
        "kargs": result.all("kargs"),
        "remotes": result.all("remote"),
        "fsck": "clean" if fsck else None,
        "root_used": result.number("root-used"),
        "root_free": result.number("root-free"),
    }
