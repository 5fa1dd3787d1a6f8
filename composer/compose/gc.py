"""`composer gc`: removes what no job can use any more.

That is: runs whose composer is gone, templates that no job would clone (their bootstrap image is gone, or
QEMU, libvirt or the host's CPU changed), and what was being made when its maker was killed.
"""

from __future__ import annotations

from pathlib import Path

from composer.compose.workshop import Options
from composer.errors import ComposerError
from composer.events import Reporter
from composer.helper import bootstrap, hypervisor, template
from composer.helper.bootstrap import BootstrapImage
from composer.helper.hypervisor import Host
from composer.helper.lease import HelperShape, helper_domain
from composer.recipe.values import show_size
from composer.store.cache import Entry, key_of
from composer.store.folders import Folders
from composer.store.runs import Run, Runs


def collect(folders: Folders, options: Options, reporter: Reporter, *, dry: bool = False) -> int:
    """Remove what is of no use, telling each; return the bytes that this gives back.

    With ``dry`` nothing is removed.
    """
    freed = 0
    if not dry:
        for name in Runs(folders.runs).clear_leftovers():
            reporter.note("gc", f"cleared the helper {name}, whose composer is gone")
    images, templates = bootstrap.cache_of(folders.cache), template.cache_of(folders.cache)
    for cache in (images, templates):
        for left, size in cache.leftovers(remove=not dry):
            reporter.note("gc", f"{left}: left half made, {show_size(size)}")
            freed += size
    present = {entry.key: entry for entry in images.entries()}
    with hypervisor.connected(options.connect, folders.runs, folders.cache / "libvirt") as host:
        for entry in list(templates.entries()):
            reason = _unreachable(entry, present, host)
            if reason:
                reporter.note("gc", f"template {entry.key}: {reason}, {show_size(entry.bytes)}")
                freed += entry.bytes
                if not dry:
                    templates.remove(entry.key)
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
