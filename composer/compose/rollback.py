"""`composer rollback`: puts the former deployment of a disk first."""

from __future__ import annotations

from pathlib import Path

from composer.compose import steps
from composer.compose.build import Outcome
from composer.compose.edit import Edit, carry_out, room_for
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Workshop, check_room
from composer.disk.manifest import Deployment, Identity, Manifest
from composer.errors import BadInput
from composer.helper.job import Job, JobResult, run_job
from composer.helper.lease import Helper, HelperShape


def rollback(workshop: Workshop, disk: Path) -> Outcome:
    """Make the deployment before the default one the default.

    Nothing is moved and nothing is lost: the one that was first comes next, and another rollback puts it
    first again.  Raises BadInput where the disk has one deployment alone.
    """
    former_of(known_disk(disk), disk)
    with workshop.work(disk, "rollback") as work, workshop.folder(work) as folder:
        manifest = known_disk(disk)
        former = former_of(manifest, disk)
        check_room(disk.parent, room_for(disk, manifest), "the changed disk")
        bootstrap = bootstrap_for(workshop, manifest, None, steps.ROLLBACK_STEPS)
        data = {
            **steps.partition_data(manifest.partitions),
            "stateroot": former.stateroot.encode(),
            "commit": former.commit.encode(),
            "serial": str(former.serial).encode(),
        }

        def act(helper: Helper) -> JobResult:
            job = Job(steps.ROLLBACK_STEPS, data)
            return run_job(helper.shell, job, workshop.reporter, workshop.deadline)

        shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
        edit = Edit("rollback", former.commit, act)
        done = carry_out(workshop, work, folder, manifest, (bootstrap, shape), edit)
    return Outcome(disk, done.manifest, True, growth=done.growth, size=done.size)


def former_of(manifest: Manifest, disk: Path) -> Deployment:
    """Return the deployment that a rollback would put first."""
    if manifest.disk != Identity.of(disk):
        raise BadInput(
            f"{disk} was written to since the composer's last job, so it is not known what is on it",
            hint=f"composer update {disk}   finds out, and brings it to the commit of its ref",
        )
    stateroot = manifest.deployments[0].stateroot
    for deployment in manifest.deployments[1:]:
        if deployment.stateroot == stateroot:
            return deployment
    raise BadInput(
        f"{disk} has one deployment alone, so there is none to go back to",
        hint=f"composer update {disk}   adds one where its ref names a newer commit",
    )
