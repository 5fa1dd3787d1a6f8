"""`composer build`: from a recipe to a new disk."""

from __future__ import annotations

import base64
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from composer.compose import steps
from composer.compose.lost import lost_by_build
from composer.compose.prepare import source_of
from composer.compose.source import RepoSource
from composer.compose.supply import Supply, opened_supply
from composer.compose.target import new_target
from composer.compose.workshop import Workshop, check_room
from composer.disk import image
from composer.disk.inuse import check_unused
from composer.disk.manifest import (
    Deed,
    Deployment,
    HelperSettings,
    Identity,
    Keys,
    Manifest,
    Room,
    TlsFiles,
    check_place,
    load_manifest,
    publish_disk,
)
from composer.disk.marks import marks_of
from composer.disk.qcow2 import hidden_beside, overlays_on
from composer.errors import BadInput, ComposerError
from composer.export.delta import Wanted
from composer.helper.bootstrap import BootstrapImage
from composer.helper.job import JobResult, run_job
from composer.helper.lease import HelperShape
from composer.plan import Plan, make_plan
from composer.recipe.load import LoadedRecipe
from composer.repo.local import Repo
from composer.repo.signatures import Trust
from composer.store.work import Work


@dataclass(frozen=True)
class Outcome:
    """What came of work on a disk; ``changed`` is False where there was nothing to do.

    ``size`` of the disk's file and its ``growth`` are bytes, as the host's file system counts them.
    """

    disk: Path
    manifest: Manifest
    changed: bool
    bytes_moved: int = 0
    objects_moved: int = 0
    size: int = 0
    growth: int = 0
    pruned: tuple[Deployment, ...] = ()


def build(
    workshop: Workshop,
    loaded: LoadedRecipe,
    disk: Path,
    *,
    force: bool = False,
    allow_downgrade: bool = False,
) -> Outcome:
    """Make the disk that a recipe describes.

    The same recipe and commit again is a no-op, unless ``force`` is given.  Until the new disk is
    finished and checked, whatever lies at ``disk`` stays as it is.  Raises NotTrusted if the ref names an
    older commit than it did before, unless ``allow_downgrade`` is given.
    """
    if not disk.parent.is_dir():
        raise BadInput(f"no such folder: {disk.parent}", hint=f"mkdir -p {disk.parent}")
    if not os.access(disk.parent, os.W_OK):
        raise BadInput(f"the folder {disk.parent} cannot be written to")
    with source_of(workshop, loaded) as source:
        return _build(workshop, loaded, source, disk, force=force, allow_downgrade=allow_downgrade)


def _build(
    workshop: Workshop,
    loaded: LoadedRecipe,
    source: RepoSource,
    disk: Path,
    *,
    force: bool,
    allow_downgrade: bool,
) -> Outcome:
    recipe = loaded.recipe
    helper_ref = recipe.bootstrap.ref or recipe.ostree.ref
    with workshop.reporter.phase("plan", "reading recipe and refs"):
        commit = source.resolve(recipe.ostree.ref)
        settings = HelperSettings(
            ref=helper_ref,
            commit=source.resolve(helper_ref),
            memory=recipe.bootstrap.memory,
            cpus=recipe.bootstrap.cpus,
        )
    repo = workshop.fetch(source, recipe.ostree.ref, commit)
    workshop.remember(source, recipe.ostree.ref, commit, allow_downgrade=allow_downgrade)
    tree = repo.tree(commit, workshop.deadline)
    plan = make_plan(loaded, source.named, tree)
    with workshop.work(disk, "build") as work:
        present = _manifest_of(disk, force=force)
        if disk.exists():
            same = present is not None and (present.plan, present.commit) == (plan.digest, commit)
            if present is not None and same and not force:
                if not present.fits(disk):
                    workshop.reporter.warn("plan", f"{disk} was written to since the composer's last job")
                return Outcome(disk, present, changed=False, size=image.taken(disk))
            _check_lost(workshop, disk, lost_by_build(disk, present, plan), force=force)
        check_place(disk)
        _check_no_base(disk)
        workshop.check_free(disk)
        check_room(disk.parent, tree.content_bytes, "the new disk")
        return _make(workshop, work, plan, source, repo, settings, loaded, allow_downgrade=allow_downgrade)


def _manifest_of(disk: Path, *, force: bool) -> Manifest | None:
    """Return the manifest of what lies at ``disk``; with ``force``, None for one that cannot be read."""
    try:
        return load_manifest(disk)
    except BadInput:
        if force:
            return None
        raise


def _check_lost(workshop: Workshop, disk: Path, lost: tuple[str, ...], *, force: bool) -> None:
    """Raise BadInput where a build would lose something for good; with ``force``, say what."""
    if not lost:
        return
    if force:
        workshop.reporter.warn("replace", f"{disk} will be replaced, and is lost then: {'; '.join(lost)}")
        return
    raise BadInput(
        f"{disk} exists, and a build would lose {'; '.join(lost)}",
        hint=f"-o OTHER.qcow2   builds beside it;   composer update {disk}   keeps what is on it;   "
        "--force   replaces it all the same",
    )


def _check_no_base(disk: Path) -> None:
    if disk.exists() and (overlays := overlays_on(disk)):
        raise BadInput(f"{disk} is the base of {overlays[0].name}, which a build would make unreadable")


def warn_of_hidden(workshop: Workshop, disk: Path, verb: str) -> None:
    """Warn of files beside a disk that cannot be read: where one stands on it, the verb harms that one."""
    if hidden := hidden_beside(disk):
        names = ", ".join(path.name for path in hidden[:3]) + (", ..." if len(hidden) > 3 else "")
        workshop.reporter.warn(
            "beside",
            f"not readable beside {disk}: {names}; a disk that stands on it would not survive the {verb}",
        )


def _make(
    workshop: Workshop,
    work: Work,
    plan: Plan,
    source: RepoSource,
    repo: Repo,
    settings: HelperSettings,
    loaded: LoadedRecipe,
    *,
    allow_downgrade: bool,
) -> Outcome:
    disk, began = work.disk, time.monotonic()
    before, room = Identity.found(disk), image.taken(disk)
    if before:
        warn_of_hidden(workshop, disk, "build")

    def unchanged() -> None:
        check_unused(disk)
        _check_no_base(disk)
        if before != Identity.found(disk):
            raise ComposerError(
                f"{disk} was changed by somebody else while the build ran",
                disk="the disk is as that other program left it; the build was dropped",
                hint="composer build RECIPE   once nothing else uses it",
            )

    if settings.commit != plan.source.commit:
        workshop.fetch(source, settings.ref, settings.commit)
        workshop.remember(source, settings.ref, settings.commit, allow_downgrade=allow_downgrade)
    bootstrap = workshop.bootstrap(repo, settings.commit, steps.build_steps(plan, ()))
    shape = HelperShape(settings.memory, settings.cpus)
    with ExitStack() as stack:
        folder = stack.enter_context(workshop.folder(work))
        wanted = Wanted(plan.source.commit)
        supply = stack.enter_context(opened_supply(workshop, source, repo, wanted, bootstrap, folder))
        new = folder / disk.name
        image.create(new, plan.disk_size, workshop.deadline)
        result = _run(workshop, work, plan, supply, bootstrap, replace(shape, share=supply.share), new)
        with workshop.reporter.phase("publish", "checking the image and putting it in place"):
            image.check(new, "the new disk", workshop.deadline)
            size = image.taken(new)
            new.chmod(0o600)  # it holds password hashes, and keys once it has booted
            deed = Deed.done("build", plan.source.commit, began, supply.moved.bytes)
            manifest = _manifest(plan, source.named, settings, loaded, result, new, deed)
            if manifest.commit != plan.source.commit:
                raise ComposerError("the helper does not report the commit as the default deployment")
            manifest = publish_disk(new, disk, manifest, unchanged)
    moved = supply.moved
    return Outcome(disk, manifest, True, moved.bytes, moved.objects, size=size, growth=size - room)


def _run(
    workshop: Workshop,
    work: Work,
    plan: Plan,
    supply: Supply,
    bootstrap: BootstrapImage,
    shape: HelperShape,
    new: Path,
) -> JobResult:
    """Have a helper fill the new disk; return what it reports."""
    target = new_target(new)
    with (
        workshop.bench(f"build {new.name}", bootstrap, work) as bench,
        workshop.helper(bench, shape, warming=True) as helper,
    ):
        helper.machine.attach(target)
        with supply.reaching(helper, workshop) as where:
            job = steps.build_job(plan, supply.steps, where)
            result = run_job(helper.shell, job, workshop.reporter, workshop.deadline)
        with workshop.reporter.phase("detach", "detaching the disk"):
            helper.machine.detach(target, workshop.deadline)
    if "ed25519" in result.all("lacks"):
        workshop.reporter.warn(
            "keys",
            "the product's ostree has no ed25519 and so refuses its own upgrades; "
            "a tree with one that has (libsodium or OpenSSL) mends that",
        )
    return result


def _manifest(
    plan: Plan,
    repo: str,
    settings: HelperSettings,
    loaded: LoadedRecipe,
    result: JobResult,
    new: Path,
    deed: Deed,
) -> Manifest:
    return Manifest(
        name=plan.name,
        recipe=str(loaded.path),
        plan=plan.digest,
        repo=repo,
        ref=plan.source.ref,
        stateroot=plan.source.stateroot,
        remote=plan.source.remote,
        keep=plan.source.keep,
        flatten=loaded.recipe.output.flatten,
        keys=keys_of(plan.trust),
        tls=tls_files_of(loaded),
        firmware=plan.firmware,
        partitions=steps.partitions_of(plan),
        helper=settings,
        deployments=deployments_of(result),
        disk=Identity.of(new),
        marks=marks_of(new),
        root=room_of(result),
        history=(deed,),
    )


def room_of(result: JobResult) -> Room:
    """Return what the step `report` says of the root file system."""
    free = result.number("root-free")
    return Room(size=result.number("root-used") + free, free=free)


def keys_of(trust: Trust) -> Keys:
    """Return keys as a manifest keeps them."""
    gpg = tuple(base64.b64encode(key).decode() for key in trust.gpg)
    return Keys(gpg=gpg, ed25519=trust.ed25519, require_binding=trust.require_binding)


def tls_files_of(loaded: LoadedRecipe) -> TlsFiles:
    """Return where a recipe's TLS files lie, for a manifest."""
    tls = loaded.recipe.ostree.tls
    given = tls.model_dump(exclude_none=True) if tls else {}
    return TlsFiles(**{name: str(loaded.resolve(path)) for name, path in given.items()})


def deployments_of(result: JobResult) -> tuple[Deployment, ...]:
    """Return the deployments that the step `report` found, the default one first."""
    return tuple(Deployment.parse(line) for line in result.all("deployment"))
