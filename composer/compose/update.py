"""`composer update`: brings a disk to a newer commit, moving only what it lacks."""

from __future__ import annotations

import base64
import os
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from composer.compose import steps
from composer.compose.build import Outcome, deployments_of, keys_of, tls_files_of
from composer.compose.source import RepoSource
from composer.compose.supply import opened_supply
from composer.compose.target import overlay_target
from composer.compose.workshop import Workshop, beside, check_room, disk_locked
from composer.disk import image
from composer.disk.manifest import Deed, Identity, Manifest, load_manifest, publish_disk, settle
from composer.disk.qcow2 import check_disk
from composer.errors import BadInput, ComposerError, NotTrusted
from composer.export.delta import Wanted
from composer.helper.bootstrap import BootstrapImage, cache_of, find_bootstrap
from composer.helper.job import Job, check_tools, run_job
from composer.helper.lease import HelperShape
from composer.plan import Source, check_bootable, trust_of
from composer.recipe.load import LoadedRecipe
from composer.repo.local import Repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls, is_url


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the manifest; None leaves the manifest's word.

    A recipe stands for its repo, ref, keep and helper; the other three go before it.
    """

    recipe: LoadedRecipe | None = None
    repo: str | None = None
    ref: str | None = None
    keep: int | None = None
    allow_downgrade: bool = False


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
        with source_for(workshop, manifest) as source:
            with workshop.reporter.phase("plan", "reading manifest and ref"):
                commit = source.resolve(manifest.ref)
                manifest = manifest.model_copy(update={"repo": source.named})
            unchanged = manifest.disk == Identity.of(disk)
            settled = (manifest.ref, manifest.keep) == (present.ref, present.keep)
            if settled and manifest.commit == commit and unchanged:
                return Outcome(disk, manifest, changed=False)
            repo = workshop.fetch(source, manifest.ref, commit)
            newer = overrides.allow_downgrade or _is_newer(source, commit, manifest.commit)
            check_bootable(repo.kernel_tree(commit, workshop.deadline))
            check_room(disk.parent, disk.stat().st_size, "the updated disk")
            # A disk that booted since may have dropped what its manifest names.
            have = {deployment.commit for deployment in manifest.deployments} if unchanged else set()
            wanted = Wanted(commit, frozenset(have), manifest.commit if unchanged and newer else None)
            return _bring(workshop, disk, manifest, source, repo, wanted, overrides)


def source_for(workshop: Workshop, manifest: Manifest) -> AbstractContextManager[RepoSource]:
    """Open the repo that a manifest names, with its keys and certificates."""
    trust = Trust(tuple(base64.b64decode(key) for key in manifest.keys.gpg), manifest.keys.ed25519)
    files = {name: Path(path) for name, path in manifest.tls.model_dump(exclude_none=True).items()}
    return workshop.source(manifest.repo, Path.cwd(), trust, Tls(**files))


def _is_newer(source: RepoSource, commit: str, deployed: str) -> bool:
    """Tell whether a commit is no older than the deployed one; NotTrusted where it says that it is.

    False where nobody here knows the deployed one any more: the helper finds it on the disk and checks that.
    """
    made, before = source.timestamp(commit), source.timestamp(deployed)
    if made is None or before is None:
        return False
    if made < before:
        days = (before - made) / 86400
        raise NotTrusted(
            f"commit {commit[:12]} is older than {deployed[:12]}, which the disk has, by {days:.1f} days",
            hint="--allow-downgrade   if that is meant",
            disk="the disk is as it was",
        )
    return True


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
            "keys": keys_of(trust_of(overrides.recipe)),
            "tls": tls_files_of(overrides.recipe),
            "helper": manifest.helper.model_copy(
                update={"memory": recipe.bootstrap.memory, "cpus": recipe.bootstrap.cpus}
            ),
        }
    said = {"repo": overrides.repo, "ref": overrides.ref, "keep": overrides.keep}
    changes |= {key: value for key, value in said.items() if value is not None}
    return manifest.model_copy(update=changes)


def bootstrap_for(
    workshop: Workshop, manifest: Manifest, source: RepoSource | None, wanted: tuple[str, ...]
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
    with ExitStack() as stack:
        source = source or stack.enter_context(source_for(workshop, manifest))
        commit = settings.commit
        if not source.has_commit(commit):
            commit = source.resolve(settings.ref)
            workshop.reporter.note(
                "bootstrap", f"the helper's former commit is gone; using {settings.ref} of now"
            )
        return workshop.bootstrap(workshop.fetch(source, settings.ref, commit), commit, wanted)


def _bring(
    workshop: Workshop,
    disk: Path,
    manifest: Manifest,
    source: RepoSource,
    repo: Repo,
    wanted: Wanted,
    overrides: Overrides,
) -> Outcome:
    began = time.monotonic()
    bootstrap = bootstrap_for(workshop, manifest, source, steps.update_steps(()))
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    before = Identity.of(disk)
    release = Source(manifest.ref, wanted.commit, manifest.stateroot, manifest.keep, manifest.remote)
    data = {**steps.partition_data(manifest.partitions), **steps.source_data(release)}
    if overrides.allow_downgrade:
        data["allow-downgrade"] = b""
    with ExitStack() as stack:
        folder = stack.enter_context(beside(disk))
        supply = stack.enter_context(opened_supply(workshop, source, repo, wanted, bootstrap, folder))
        overlay, new = folder / "overlay.qcow2", folder / disk.name
        target = overlay_target(overlay, disk, workshop.deadline)
        with (
            workshop.bench(f"update {disk.name}", bootstrap) as bench,
            workshop.helper(bench, replace(shape, share=supply.share)) as helper,
        ):
            helper.machine.attach(target)
            with supply.reaching(helper, workshop) as where:
                job = Job(steps.update_steps(supply.steps), data | where)
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
            deed = Deed.done("update", wanted.commit, began, supply.moved.bytes)
            after = manifest.after(deed, deployments_of(result), Identity.of(new))
            publish_disk(new, disk, after)
    return Outcome(disk, after, True, supply.moved.bytes, supply.moved.objects)
