"""`composer update`: brings a disk to a newer commit, moving only what it lacks."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from composer.compose import steps
from composer.compose.build import Outcome, deployments_of
from composer.compose.progress import pull_watched
from composer.compose.target import overlay_target
from composer.compose.workshop import Workshop, beside, check_room, disk_locked
from composer.disk import image
from composer.disk.manifest import Deed, Identity, Manifest, load_manifest, publish_disk, settle
from composer.disk.qcow2 import check_disk
from composer.errors import BadInput, ComposerError
from composer.export.http import http_export
from composer.helper.bootstrap import BootstrapImage, cache_of, find_bootstrap
from composer.helper.job import Job, check_tools, run_job
from composer.helper.lease import HelperShape
from composer.plan import Source, check_bootable
from composer.recipe.load import LoadedRecipe
from composer.repo import Repo, is_url


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the manifest; None leaves the manifest's word.

    A recipe stands for its repo, ref, keep and helper; the other three go before it.
    """

    recipe: LoadedRecipe | None = None
    repo: str | None = None
    ref: str | None = None
    keep: int | None = None


def known_disk(disk: Path) -> Manifest:
    """Return the manifest of a disk; BadInput where there is no safe disk or no manifest beside it."""
    check_disk(disk)
    manifest = load_manifest(disk)
    if manifest is None:
        raise BadInput(
            f"{disk} has no manifest beside it, so it is not known what is on it",
            hint=f"put {disk.name}.manifest.json back beside it, or build it anew: composer build RECIPE",
        )
    return manifest


def update(workshop: Workshop, disk: Path, overrides: Overrides) -> Outcome:
    """Bring ``disk`` to the commit that its ref names now.

    A disk that has the commit already is left alone, without a VM.  The work happens on an overlay; the
    disk itself is replaced at the very end, by a finished and checked one, in one rename.
    """
    known_disk(disk)  # what is wrong with the disk is told before anything is locked or made
    if check_disk(disk).snapshots:
        raise BadInput(
            f"{disk} has internal snapshots, which an update would lose",
            hint=f"qemu-img snapshot -l {disk}   lists them, -d NAME deletes one",
        )
    with disk_locked(disk, "update"):
        settle(disk)
        present = known_disk(disk)
        manifest = _overridden(present, overrides)
        with workshop.reporter.phase("plan", "reading manifest and commit"):
            repo = workshop.repo(manifest.repo, Path.cwd(), [manifest.ref])
            commit = repo.resolve(manifest.ref, workshop.deadline)
            manifest = manifest.model_copy(update={"repo": repo.source})
            source = Source(manifest.ref, commit, manifest.stateroot, manifest.keep, manifest.remote)
        settled = (manifest.ref, manifest.keep) == (present.ref, present.keep)
        if settled and manifest.commit == commit and manifest.disk == Identity.of(disk):
            return Outcome(disk, manifest, changed=False)
        check_bootable(repo.kernel_tree(commit, workshop.deadline))
        check_room(disk.parent, disk.stat().st_size, "the updated disk")
        return _bring(workshop, disk, manifest, source, repo)


def _give_like(new: Path, disk: Path) -> None:
    """Give a new disk the owner and mode of the one whose place it takes."""
    status = disk.stat()
    if os.geteuid() == 0:
        os.chown(new, status.st_uid, status.st_gid)
    new.chmod(status.st_mode & 0o777)


def _overridden(manifest: Manifest, overrides: Overrides) -> Manifest:
    changes: dict[str, object] = {}
    if overrides.recipe is not None:
        recipe = overrides.recipe.recipe
        if recipe.ostree.stateroot != manifest.stateroot:
            raise BadInput(
                f"the recipe has stateroot {recipe.ostree.stateroot!r}, the disk {manifest.stateroot!r}",
                hint="composer build   makes a disk with another stateroot",
            )
        repo = recipe.ostree.repo
        changes = {
            "recipe": str(overrides.recipe.path),
            "repo": repo if is_url(repo) else str(overrides.recipe.resolve(repo)),
            "ref": recipe.ostree.ref,
            "keep": recipe.ostree.keep,
            "helper": manifest.helper.model_copy(
                update={"memory": recipe.bootstrap.memory, "cpus": recipe.bootstrap.cpus}
            ),
        }
    said = {"repo": overrides.repo, "ref": overrides.ref, "keep": overrides.keep}
    changes |= {key: value for key, value in said.items() if value is not None}
    return manifest.model_copy(update=changes)


def bootstrap_for(
    workshop: Workshop, manifest: Manifest, repo: Repo | None, wanted: tuple[str, ...]
) -> BootstrapImage:
    """Return a helper's image for work on a known disk.

    The one that the disk was built with will do as long as it is cached: a helper brings tools, and
    making an image of each night's commit would cost more than the update.
    """
    settings = manifest.helper
    cached = find_bootstrap(cache_of(workshop.folders.cache), settings.commit)
    if cached is not None:
        check_tools(wanted, cached)
        return cached
    repo = repo or workshop.repo(manifest.repo, Path.cwd(), [manifest.ref])
    commit = settings.commit
    if not repo.has_commit(commit, workshop.deadline):
        commit = repo.resolve(settings.ref, workshop.deadline)
        workshop.reporter.note(
            "bootstrap", f"the helper's former commit is gone; using {settings.ref} of now"
        )
    return workshop.bootstrap(repo, commit, wanted)


def _bring(workshop: Workshop, disk: Path, manifest: Manifest, source: Source, repo: Repo) -> Outcome:
    began = time.monotonic()
    bootstrap = bootstrap_for(workshop, manifest, repo, steps.UPDATE_STEPS)
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus, network=True)
    before = Identity.of(disk)
    with beside(disk) as folder, http_export(repo) as export:
        overlay, new = folder / "overlay.qcow2", folder / disk.name
        target = overlay_target(overlay, disk, workshop.deadline)
        job = Job(
            steps.UPDATE_STEPS,
            {**steps.partition_data(manifest.partitions), **steps.source_data(source, export)},
        )
        with (
            workshop.bench(f"update {disk.name}", bootstrap) as bench,
            workshop.helper(bench, shape) as helper,
        ):
            helper.machine.attach(target)
            with pull_watched(export, workshop.reporter):
                result = run_job(helper.shell, job, workshop.reporter, workshop.deadline)
            with workshop.reporter.phase("detach", "detaching the disk"):
                helper.machine.detach(target, workshop.deadline)
        with workshop.reporter.phase("publish", "flattening, checking and putting the disk in place"):
            image.check(overlay, workshop.deadline)
            image.flatten(overlay, new, workshop.deadline)
            if Identity.of(disk) != before:
                raise ComposerError(
                    f"{disk} was changed by somebody else while it was updated",
                    disk="the disk is as that other program left it; the update was dropped",
                    hint=f"composer update {disk}   once nothing else uses it",
                )
            image.check(new, workshop.deadline)
            _give_like(new, disk)
            deed = Deed.done("update", source.commit, began, export.served.bytes)
            after = manifest.after(deed, deployments_of(result), Identity.of(new))
            publish_disk(new, disk, after)
    return Outcome(disk, after, True, export.served.bytes, export.served.files)
