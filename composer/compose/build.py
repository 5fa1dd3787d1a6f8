"""`composer build`: from a recipe to a new disk."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from composer.compose import steps
from composer.compose.progress import pull_watched
from composer.compose.target import new_target
from composer.compose.workshop import Workshop, beside, check_room, disk_locked
from composer.disk import image
from composer.disk.manifest import (
    Deed,
    Deployment,
    HelperSettings,
    Identity,
    Manifest,
    load_manifest,
    publish_disk,
    settle,
)
from composer.errors import BadInput, ComposerError
from composer.export.http import http_export
from composer.helper.job import JobResult, run_job
from composer.helper.lease import HelperShape
from composer.plan import Plan, make_plan
from composer.recipe.load import LoadedRecipe
from composer.repo import Repo


@dataclass(frozen=True)
class Outcome:
    """What a build or an update came to; ``changed`` is False where there was nothing to do."""

    disk: Path
    manifest: Manifest
    changed: bool
    bytes_moved: int = 0
    objects_moved: int = 0


def build(workshop: Workshop, loaded: LoadedRecipe, disk: Path, *, force: bool = False) -> Outcome:
    """Make the disk that a recipe describes.

    The same recipe and commit again is a no-op, unless ``force`` is given.  Until the new disk is
    finished and checked, whatever lies at ``disk`` stays as it is.
    """
    if not disk.parent.is_dir():
        raise BadInput(f"no such folder: {disk.parent}", hint=f"mkdir -p {disk.parent}")
    if not os.access(disk.parent, os.W_OK):
        raise BadInput(f"the folder {disk.parent} cannot be written to")
    recipe = loaded.recipe
    helper_ref = recipe.bootstrap.ref or recipe.ostree.ref
    with workshop.reporter.phase("plan", "reading recipe and commit"):
        repo = workshop.repo(recipe.ostree.repo, loaded.path.parent, sorted({recipe.ostree.ref, helper_ref}))
        commit = repo.resolve(recipe.ostree.ref, workshop.deadline)
        tree = repo.tree(commit, workshop.deadline)
        plan = make_plan(loaded, repo.source, tree)
        settings = HelperSettings(
            ref=helper_ref,
            commit=repo.resolve(helper_ref, workshop.deadline),
            memory=recipe.bootstrap.memory,
            cpus=recipe.bootstrap.cpus,
        )
    with disk_locked(disk, "build"):
        settle(disk)
        present = load_manifest(disk)
        if disk.exists() and not force:
            if present is None:
                raise BadInput(
                    f"{disk} exists and has no manifest, so it is not a disk of ours",
                    hint="move it away, or replace it with --force",
                )
            used = present.disk != Identity.of(disk)
            if present.plan == plan.digest and present.commit == commit:
                if used:
                    workshop.reporter.warn("plan", f"{disk} was written to since the composer's last job")
                return Outcome(disk, present, changed=False)
            if used:
                raise BadInput(
                    f"{disk} was written to since the composer's last job; a build would lose that",
                    hint=f"composer update {disk}   keeps it;   --force   builds all the same",
                )
        check_room(disk.parent, tree.content_bytes, "the new disk")
        return _make(workshop, plan, repo, settings, disk, loaded.path)


def _make(
    workshop: Workshop,
    plan: Plan,
    repo: Repo,
    settings: HelperSettings,
    disk: Path,
    recipe: Path,
) -> Outcome:
    began = time.monotonic()
    bootstrap = workshop.bootstrap(repo, settings.commit, steps.build_steps(plan))
    shape = HelperShape(settings.memory, settings.cpus, network=True)
    with beside(disk) as folder, http_export(repo) as export:
        new = folder / disk.name
        image.create(new, plan.disk_size, workshop.deadline)
        target = new_target(new)
        with (
            workshop.bench(f"build {disk.name}", bootstrap) as bench,
            workshop.helper(bench, shape, warming=True) as helper,
        ):
            helper.machine.attach(target)
            with pull_watched(export, workshop.reporter):
                result = run_job(
                    helper.shell, steps.build_job(plan, export), workshop.reporter, workshop.deadline
                )
            with workshop.reporter.phase("detach", "detaching the disk"):
                helper.machine.detach(target, workshop.deadline)
        with workshop.reporter.phase("publish", "checking the image and putting it in place"):
            image.check(new, workshop.deadline)
            new.chmod(0o600)  # it holds password hashes, and keys once it has booted
            deed = Deed.done("build", plan.source.commit, began, export.served.bytes)
            manifest = _manifest(plan, repo, settings, recipe, result, new, deed)
            if manifest.commit != plan.source.commit:
                raise ComposerError("the helper does not report the commit as the default deployment")
            publish_disk(new, disk, manifest)
    return Outcome(disk, manifest, True, export.served.bytes, export.served.files)


def _manifest(
    plan: Plan,
    repo: Repo,
    settings: HelperSettings,
    recipe: Path,
    result: JobResult,
    new: Path,
    deed: Deed,
) -> Manifest:
    return Manifest(
        name=plan.name,
        recipe=str(recipe),
        plan=plan.digest,
        repo=repo.source,
        ref=plan.source.ref,
        stateroot=plan.source.stateroot,
        remote=plan.source.remote,
        keep=plan.source.keep,
        firmware=plan.firmware,
        partitions=steps.partitions_of(plan),
        helper=settings,
        deployments=deployments_of(result),
        disk=Identity.of(new),
        history=(deed,),
    )


def deployments_of(result: JobResult) -> tuple[Deployment, ...]:
    """Return the deployments that the step `report` found, the default one first."""
    return tuple(Deployment.parse(line) for line in result.all("deployment"))
