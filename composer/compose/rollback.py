"""`composer rollback`: puts the former deployment of a disk first."""

from __future__ import annotations

from pathlib import Path

from composer.compose import steps
from composer.compose.build import Outcome
from composer.compose.edit import Edit, carry_out, check_replaceable, room_for
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Workshop, check_room
from composer.disk.manifest import Manifest
from composer.errors import BadInput
from composer.helper.job import Job, JobResult, run_job
from composer.helper.lease import Helper, HelperShape


def rollback(workshop: Workshop, disk: Path) -> Outcome:
    """Make the deployment before the default one the default.

    Nothing is moved and nothing is lost: the one that was first comes next, and another rollback puts it
    first again.  A disk that was booted since the composer's last job may have other deployments than its
    manifest says; the helper looks.  Raises BadInput, or there GuestStepFailed, where the disk has one alone.
    """
    _former(known_disk(disk), disk)
    check_replaceable(disk, "rollback")
    with workshop.work(disk, "rollback") as work, workshop.folder(work) as folder:
        manifest = known_disk(disk)
        former = _former(manifest, disk)
        check_room(disk.parent, room_for(disk, manifest, workshop.deadline), "the changed disk")
        bootstrap = bootstrap_for(workshop, manifest, None, steps.ROLLBACK_STEPS)
        data = steps.partition_data(manifest.partitions)

        def act(helper: Helper) -> JobResult:
            job = Job(steps.ROLLBACK_STEPS, data)
            return run_job(helper.shell, job, workshop.reporter, workshop.deadline)

        shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
        edit = Edit("rollback", former, act)
        done = carry_out(workshop, work, folder, manifest, (bootstrap, shape), edit)
    return Outcome(disk, done.manifest, True, growth=done.growth, size=done.size)


def _former(manifest: Manifest, disk: Path) -> str | None:
    """Return the commit to go back to, None where the disk was written to since the manifest was."""
    if not manifest.fits(disk):
        return None
    for former in manifest.deployments[1:]:
        if former.stateroot == manifest.deployments[0].stateroot:
            return former.commit
    raise BadInput(
        f"{disk} has one deployment alone, so there is none to go back to",
        hint=f"composer update {disk}   adds one where its ref names a newer commit",
    )
