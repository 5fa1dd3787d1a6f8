"""`composer gc`: removes what no job can use any more.

That is: runs whose composer is gone, templates that no job would clone (their bootstrap image is gone, or
QEMU, libvirt or the host's CPU changed), and what was being made when its maker was killed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from composer.compose.source import clear_remote
from composer.compose.workshop import Workshop
from composer.disk.manifest import settle
from composer.errors import Busy, ComposerError
from composer.events import Reporter
from composer.export import delta
from composer.helper import bootstrap, hypervisor, template
from composer.helper.bootstrap import BootstrapImage
from composer.helper.hypervisor import Host
from composer.helper.lease import HelperShape, helper_domain
from composer.recipe.values import show_size
from composer.repo.checked import CheckedRepo
from composer.store.cache import Cache, Entry, key_of
from composer.store.folders import Folders, half_made
from composer.store.locks import is_locked, locked
from composer.store.runs import Run, Runs
from composer.store.work import clear_folders, lock_path, noted_disks


def collect(workshop: Workshop, days: float | None = None, *, dry: bool = False) -> int:
    """Remove what is of no use, telling each; return the bytes that this gives back.

    That includes what was not used for so many ``days``, where they are given; one at least, for what was
    used within a day a job may be about to open.  With ``dry`` nothing is removed.
    """
    folders, reporter = workshop.folders, workshop.reporter
    runs = Runs.of(folders)
    for name in [run.name for run in runs.leftovers()] if dry else runs.clear_leftovers():
        reporter.note("gc", f"the helper {name}, whose composer is gone")
    freed = _collect_work(folders.work, reporter, dry=dry)
    if not dry:
        _collect_small(folders)
    if downloads := clear_remote(folders.cache / "remote", dry=dry):
        reporter.note("gc", f"downloads of composers that are gone, {show_size(downloads)}")
        freed += downloads
    images, templates = bootstrap.cache_of(folders.cache), template.cache_of(folders.cache)
    caches = (images, templates, delta.cache_of(folders.cache))
    if days is not None:
        freed += _collect_old(workshop, caches, time.time() - days * 86400, dry=dry)
    for cache in caches:
        for left, size in cache.leftovers(remove=not dry):
            reporter.note("gc", f"{left}: left half made, {show_size(size)}")
            freed += size
    present = {entry.key: entry for entry in images.entries()}
    made = list(templates.entries())
    if not made:
        return freed
    with hypervisor.connected(workshop.options.connect, folders.runs, folders.cache / "libvirt") as host:
        for entry in made:
            reason = _unreachable(entry, present, host)
            if reason:
                reporter.note("gc", f"template {entry.key}: {reason}, {show_size(entry.bytes)}")
                freed += entry.bytes
                if not dry:
                    templates.remove(entry.key)
    return freed


def _collect_small(folders: Folders) -> None:
    """Remove files of a few bytes that killed composers were writing, and what one tried reflinks with."""
    for half in (*half_made(folders.work), *half_made(folders.cache / "accelerator")):
        half.unlink(missing_ok=True)
    for tried in half_made(folders.cache, ".reflink.*"):
        shutil.rmtree(tried, ignore_errors=True)


def _collect_work(notes: Path, reporter: Reporter, *, dry: bool) -> int:
    """Remove what killed composers left beside disks; return its bytes."""
    freed = 0
    for note, disk in noted_disks(notes):
        try:
            if dry:
                if is_locked(lock_path(disk)):
                    continue
                left = clear_folders(disk, dry=True)
            else:
                with locked(lock_path(disk), purpose="gc", what=str(disk)):
                    settle(disk)
                    left = clear_folders(disk)
                    note.unlink()
            reporter.note("gc", f"what a killed composer left beside {disk}, {show_size(left)}")
            freed += left
        except Busy:
            continue  # it is being worked on
        except (ComposerError, OSError) as error:
            reporter.warn("gc", f"what was left beside {disk} cannot be removed: {error}")
    return freed


def _collect_old(workshop: Workshop, caches: Iterable[Cache], before: float, *, dry: bool) -> int:
    """Remove what was last used ``before`` then, in seconds since the epoch; return its bytes."""
    folder, reporter, freed = workshop.folders.cache, workshop.reporter, 0
    for cache in caches:
        for entry in [entry for entry in cache.entries() if entry.last_used < before]:
            reporter.note("gc", f"{cache.kind} {entry.key}: not used for long, {show_size(entry.bytes)}")
            freed += entry.bytes
            if not dry:
                cache.remove(entry.key)
    for log in sorted((folder / "logs").glob("*")):
        if log.stat().st_mtime < before:
            reporter.note("gc", f"log {log.name}")
            if not dry:
                shutil.rmtree(log) if log.is_dir() else log.unlink()
    for ref in CheckedRepo(folder / "repo").prune(before, workshop.deadline, dry=dry):
        reporter.note("gc", f"commits of {ref}: not fetched for long; their size is not counted")
    return freed


def _unreachable(entry: Entry, present: dict[str, Entry], host: Host) -> str | None:
    """Return why no job would clone a template, or None where one would."""
    inputs = entry.info["inputs"]
    image = present.get(inputs["bootstrap"])
    if image is None:
        return "its bootstrap image is gone"
    abilities = host.abilities(inputs["accelerator"])
    if abilities is None:
        return "this host has its accelerator no more"
    shape = HelperShape(entry.info["memory"], entry.info["cpus"])
    domain = helper_domain(BootstrapImage(image, fresh=False), abilities, shape, Run(Path("/")))
    try:
        template.Template(entry).check()
    except ComposerError as error:
        return error.message
    wanted = key_of(template.inputs_of(domain, image.key, host))
    return None if entry.key == wanted else "made with another QEMU, libvirt, CPU or composer"
