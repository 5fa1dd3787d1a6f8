"""`composer rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from composer.cli.options import PATH, JobOptions, job_options, session, tell_outcome
from composer.compose.rollback import rollback as rollback_disk


@click.command()
@click.argument("disk", type=PATH)
@job_options("helper", "disk", "rewrite")
def rollback(disk: Path, job: JobOptions) -> None:
    """Put the former deployment of DISK first, so that it boots what it booted before its last update.

    Nothing is lost: the newer one stays on the disk, and another rollback puts it first again.

    Example:  composer rollback debian-bookworm.qcow2
    """
    with session(job) as made:
        outcome = rollback_disk(made.workshop, disk.resolve())
        first, *others = outcome.manifest.deployments
        text = f"{disk} boots commit {first.commit[:12]} again"
        # What it booted until now comes next; a guest may report none.
        if left := [other.commit[:12] for other in others if other.stateroot == first.stateroot]:
            text += f", {left[0]} stays on it"
        tell_outcome(made, disk, outcome, text)
