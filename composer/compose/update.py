"""`composer update`: brings a disk to a newer commit, moving only what it lacks."""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from composer.compose import steps
from composer.compose.build import Outcome, keys_of, tls_files_of
from composer.compose.edit import Edit, Edited, carry_out, check_replaceable, room_for
from composer.compose.source import RepoSource
from composer.compose.supply import Supply, opened_supply
from composer.compose.workshop import Workshop, check_room
from composer.deadline import Deadline
from composer.disk import image
from composer.disk.manifest import (
    Flatten,
    HelperSettings,
    Manifest,
    changed,
    load_manifest,
    publish_manifest,
)
from composer.disk.marks import check_marks
from composer.disk.qcow2 import check_disk
from composer.errors import BadInput, NotTrusted
from composer.export.delta import Wanted, lacking, room_for_objects
from composer.helper.bootstrap import BootstrapImage, cache_of, find_bootstrap
from composer.helper.job import Job, JobResult, lacking_tools, run_job
from composer.helper.lease import Helper, HelperShape
from composer.plan import Source, check_bootable, trust_of
from composer.recipe.load import LoadedRecipe
from composer.recipe.values import show_size
from composer.repo.local import Repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls, is_url
from composer.store.work import Work

# A file system's own tables, and what is on a disk besides the commit: the boot partition, the kernel once
# more in /boot, accounts.  The demo's disk: 450 MB of content, 527 MiB of disk.
_FRESH_FACTOR, _FRESH_BYTES = 1.05, 96 * 2**20
_MUCH = 1.5
# ostree's min-free-space-percent, below which it writes nothing (ostree.repo-config(5)).
_KEPT_FREE = 0.03


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the manifest; None leaves the manifest's word.

    A recipe stands for its repo, with keys and certificates, ref, keep, flatten and helper; what else is
    given goes before it.
    """

    recipe: LoadedRecipe | None = None
    repo: str | None = None
    ref: str | None = None
    keep: int | None = None
    flatten: Flatten | None = None
    allow_downgrade: bool = False
    compact: bool = False


def known_disk(disk: Path) -> Manifest:
    """Return the manifest of a disk; BadInput where there is no safe disk, or no manifest of it beside it."""
    check_disk(disk)
    manifest = load_manifest(disk)
    if manifest is None:
        raise BadInput(
            f"{disk} has no manifest beside it, so it is not known what is on it",
            hint=f"put {disk.name}.manifest.json back beside it, or build it anew: composer build RECIPE",
        )
    check_marks(disk, manifest)
    return manifest


def update(workshop: Workshop, disk: Path, overrides: Overrides) -> Outcome:
    """Bring ``disk`` to the commit that its ref names now.

    A disk that has the commit already is left alone, without a VM.  The work happens on an overlay; the
    disk itself is replaced at the very end, by a finished and checked one, in one rename.
    """
    known_disk(disk)  # what is wrong with the disk is told before anything is locked or made
    check_replaceable(disk, "update")
    with workshop.work(disk, "update") as work:
        present = known_disk(disk)
        manifest = _overridden(present, overrides)
        with source_for(workshop, manifest) as source:
            with workshop.reporter.phase("plan", "reading manifest and ref"):
                commit = source.resolve(manifest.ref)
                helper = _helper_of(manifest, overrides, source)
                manifest = manifest.model_copy(update={"repo": source.named, "helper": helper})
            unchanged = manifest.fits(disk)
            settled = all(
                getattr(manifest, name) == getattr(present, name) for name in ("ref", "keep", "flatten")
            )
            if settled and manifest.commit == commit and unchanged and not overrides.compact:
                if manifest != present:  # for the updates to come
                    publish_manifest(disk, manifest)
                return Outcome(disk, manifest, changed=False, size=image.taken(disk))
            workshop.check_free(disk)
            repo = workshop.fetch(source, manifest.ref, commit)
            newer = overrides.allow_downgrade or _is_newer(source, commit, manifest.commit)
            workshop.remember(source, manifest.ref, commit, allow_downgrade=overrides.allow_downgrade)
            check_room(disk.parent, room_for(disk, manifest, workshop.deadline), "the updated disk")
            # A disk that booted since may have dropped what its manifest names.
            have = {deployment.commit for deployment in manifest.deployments} if unchanged else set()
            wanted = Wanted(commit, frozenset(have), manifest.commit if unchanged and newer else None)
            return _bring(workshop, work, manifest, source, repo, wanted, overrides)


def source_for(workshop: Workshop, manifest: Manifest) -> AbstractContextManager[RepoSource]:
    """Open the repo that a manifest names, with its keys and certificates."""
    keys = manifest.keys
    trust = Trust(tuple(base64.b64decode(key) for key in keys.gpg), keys.ed25519, keys.require_binding)
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
            "flatten": recipe.output.flatten,
            "keys": keys_of(trust_of(overrides.recipe)),
            "tls": tls_files_of(overrides.recipe),
        }
    said = {name: getattr(overrides, name) for name in ("repo", "ref", "keep", "flatten")}
    changes |= {key: value for key, value in said.items() if value is not None}
    return changed(manifest, changes) if changes else manifest


def _helper_of(manifest: Manifest, overrides: Overrides, source: RepoSource) -> HelperSettings:
    """Return what works on the disk: the former helper's tree, unless a recipe names another one for it."""
    if overrides.recipe is None:
        return manifest.helper
    wanted, settings = overrides.recipe.recipe.bootstrap, manifest.helper
    ref, commit = settings.ref, settings.commit
    if wanted.ref is not None and wanted.ref != ref:
        ref, commit = wanted.ref, source.resolve(wanted.ref)
    return HelperSettings(ref=ref, commit=commit, memory=wanted.memory, cpus=wanted.cpus)


def bootstrap_for(
    workshop: Workshop, manifest: Manifest, source: RepoSource | None, wanted: tuple[str, ...]
) -> BootstrapImage:
    """Return a helper's image for work on a known disk.

    The one that the disk was built with will do as long as it is cached: a helper brings tools, and
    making an image of each night's commit would cost more than the update.
    """
    settings = manifest.helper
    cached = find_bootstrap(cache_of(workshop.folders.cache), settings.commit)
    if cached is not None and not lacking_tools(wanted, cached):
        return cached
    with ExitStack() as stack:
        source = source or stack.enter_context(source_for(workshop, manifest))
        commit = settings.commit
        if cached is not None or not source.has_commit(commit):
            commit = source.resolve(settings.ref)
            why = "lacks programs" if cached is not None else "is gone"
            workshop.reporter.note(
                "bootstrap", f"the helper's former commit {why}; using {settings.ref} of now"
            )
        return workshop.bootstrap(workshop.fetch(source, settings.ref, commit), commit, wanted)


def _bring(
    workshop: Workshop,
    work: Work,
    manifest: Manifest,
    source: RepoSource,
    repo: Repo,
    wanted: Wanted,
    overrides: Overrides,
) -> Outcome:
    kernel = repo.kernel_tree(wanted.commit, workshop.deadline)
    check_bootable(kernel)
    bootstrap = bootstrap_for(workshop, manifest, source, steps.update_steps((), compact=overrides.compact))
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    release = Source(manifest.ref, wanted.commit, manifest.stateroot, manifest.keep, manifest.remote)
    data = {**steps.partition_data(manifest.partitions), **steps.source_data(release)}
    if overrides.allow_downgrade:
        data["allow-downgrade"] = b""
    with ExitStack() as stack:
        folder = stack.enter_context(workshop.folder(work))
        supply = stack.enter_context(opened_supply(workshop, source, repo, wanted, bootstrap, folder))
        if manifest.fits(work.disk):  # else it is not known what it lacks
            needed = _room_needed(supply, repo, wanted, kernel.boot_bytes, workshop.deadline)
            check_rooms(work.disk, manifest, needed, workshop.deadline)

        def act(helper: Helper) -> JobResult:
            with supply.reaching(helper, workshop) as where:
                job = Job(steps.update_steps(supply.steps, compact=overrides.compact), data | where)
                return run_job(helper.shell, job, workshop.reporter, workshop.deadline)

        edit = Edit("update", wanted.commit, act, lambda: supply.moved.bytes)
        helper = (bootstrap, replace(shape, share=supply.share))
        done = carry_out(workshop, work, folder, manifest, helper, edit)
    _warn_of_size(workshop, work.disk, done, repo.tree(wanted.commit, workshop.deadline).content_bytes)
    return Outcome(
        work.disk, done.manifest, True, supply.moved.bytes, supply.moved.objects,
        growth=done.growth, size=done.size, pruned=done.pruned,
    )  # fmt: skip


def _room_needed(supply: Supply, repo: Repo, wanted: Wanted, boot: int, deadline: Deadline) -> int:
    """Return the bytes that what it lacks takes on its root; ``boot`` is what its kernel takes in /boot."""
    if supply.made is not None:
        needed = supply.made.room
    else:
        needed = room_for_objects(repo, lacking(repo, wanted, deadline, supply.source.known))
    # Where a new kernel may be among it, a copy goes to /boot.
    return needed + boot if needed >= boot else needed


def check_rooms(disk: Path, manifest: Manifest, needed: int, deadline: Deadline) -> None:
    """Raise BadInput where the host, or the disk's root file system, has no room for so many bytes more."""
    # Beside the old disk there is the overlay, with what comes in, and then the new disk as well.
    check_room(disk.parent, room_for(disk, manifest, deadline) + 2 * needed, "the updated disk")
    if manifest.root is None:
        return
    room = manifest.root.free - int(manifest.root.size * _KEPT_FREE)
    if needed > room:
        raise BadInput(
            f"the root file system of {disk} has room for {show_size(max(room, 0))} more; "
            f"the update needs {show_size(needed)}",
            hint="a smaller commit (--ref), or a new build with a larger [disk] size",
        )


def _warn_of_size(workshop: Workshop, disk: Path, done: Edited, content: int) -> None:
    """Warn where a disk of this commit alone would be much smaller than what the disk has become."""
    fresh = int(content * _FRESH_FACTOR) + _FRESH_BYTES
    if done.size > fresh * _MUCH:
        workshop.reporter.warn(
            "size",
            f"{disk} takes {show_size(done.size)}; a fresh build of this commit would take about "
            f"{show_size(fresh)}: composer build RECIPE --force, or composer update --compact --keep 1",
        )
