"""`composer inspect`: what is on a disk, by its manifest and, if asked, by looking into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer.compose import steps
from composer.compose.build import TARGET_SERIAL, deployments_of
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Workshop, beside, disk_locked
from composer.disk import image
from composer.disk.manifest import Identity
from composer.disk.qcow2 import check_disk
from composer.helper.domain import Backing, Disk
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
    said["unchanged"] = manifest.disk == Identity.of(disk)
    said["sizes"] = {
        "virtual": header.size,
        "file": status.st_size,
        "allocated": status.st_blocks * 512,
    }
    return said


def look_into(workshop: Workshop, disk: Path) -> dict[str, Any]:
    """Return what a helper finds on the disk; it is looked at through an overlay, not written to."""
    manifest = known_disk(disk)
    bootstrap = bootstrap_for(workshop, manifest, None, steps.INSPECT_STEPS)
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    job = Job(steps.INSPECT_STEPS, steps.partition_data(manifest.partitions))
    with disk_locked(disk, "inspect"), beside(disk) as folder:
        overlay = folder / "overlay.qcow2"
        image.create_overlay(overlay, disk, workshop.deadline)
        target = Disk(overlay, "qcow2", TARGET_SERIAL, "sdb", backing=Backing(disk.absolute(), "qcow2"))
        with (
            workshop.bench(f"inspect {disk.name}", bootstrap) as bench,
            workshop.helper(bench, shape) as helper,
        ):
            helper.machine.attach(target)
            result = run_job(helper.shell, job, workshop.reporter, workshop.deadline)
    return {
        "deployments": [deployment.model_dump() for deployment in deployments_of(result)],
        "kargs": result.all("kargs"),
        "remotes": result.all("remote"),
        "root_used": int(result.one("root-used")),
        "root_free": int(result.one("root-free")),
    }
