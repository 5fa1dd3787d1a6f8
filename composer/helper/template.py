"""Templates: helpers that booted once, kept with their memory and state, to be cloned instead of booted.

A template is `ram`, the memory of a booted guest, and `state`, that of its devices, written by QEMU's
migration with `x-ignore-shared`, which leaves the memory where it is.  A clone maps `ram` privately, so any
number of them run from one file and none changes it.  The guest was saved as it waited for its seed
(seed.py): no key of any job is in it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer.deadline import Deadline
from composer.errors import ComposerError, TemplateUnusable
from composer.helper import seed, shell
from composer.helper.domain import SSH_PORT, Domain, Ram, domain_xml
from composer.helper.hypervisor import Host, LibvirtMachine
from composer.helper.keys import RunKeys
from composer.helper.machine import BOOT_SECONDS
from composer.helper.seed import Seed
from composer.resources import bootstrap_file
from composer.store.cache import Cache, Entry, key_of
from composer.store.folders import fsync_path
from composer.store.runs import Run

KIND = "template"
_FORMAT = 2
_WAY_OUT = "composer helper warm RECIPE   makes one"
# What tells helpers of one bootstrap image from each other: one with another is not stale.
_SHAPE = {"memory", "cpus", "devices"}
_RAM, _STATE, _USES = "ram", "state", "uses"
# Between the guest's word that it waits and the read that it waits in lie a few instructions.
_SETTLE_SECONDS = 0.1


@dataclass(frozen=True)
class Template:
    """A helper to be cloned."""

    entry: Entry

    @property
    def ram(self) -> Path:
        """The memory; clones map it."""
        return self.entry.path / _RAM

    @property
    def state(self) -> Path:
        """The state of the devices."""
        return self.entry.path / _STATE

    @property
    def uses(self) -> int:
        """How often it was cloned."""
        return (self.entry.path / _USES).stat().st_size

    def count_use(self) -> None:
        """Note one more use: a byte each, so that clones at the same time need no lock."""
        with (self.entry.path / _USES).open("ab") as file:
            file.write(b".")

    def check(self) -> None:
        """Raise TemplateUnusable where it is not, byte for byte, what was saved.

        The state is held against its hash.  Hashing the memory would cost more than the clone does;
        nobody can change a file without the kernel noting it in its times.
        """
        sealed = self.entry.info.get("sealed")
        try:
            damaged = sealed != _seal(self.entry.path)
        except OSError as error:
            raise TemplateUnusable(f"the template cannot be read: {error.strerror}") from error
        if damaged:
            raise TemplateUnusable("the template was changed since it was made", hint=_WAY_OUT)


def _seal(folder: Path) -> dict[str, Any]:
    """Return what tells a template from a changed one."""
    status = (folder / _RAM).stat()
    return {
        "state": hashlib.sha256((folder / _STATE).read_bytes()).hexdigest(),
        "ram": [status.st_ino, status.st_size, status.st_mtime_ns],
    }


def cache_of(folder: Path) -> Cache:
    """Return the cache of templates; its files are for their owner alone."""
    return Cache(folder, KIND, mode=0o600)


def inputs_of(domain: Domain, bootstrap: str, host: Host) -> dict[str, Any]:
    """Return all that a template depends on; its hash is the template's key.

    The devices are those of the domain's XML, its names and paths aside.
    """
    nowhere = Path("/")
    devices = replace(
        domain,
        name="",
        generation="",
        # These have keys of their own, so that it can be told which of them changed.
        kind="",
        emulator="",
        machine="",
        cpu_mode="",
        memory=0,
        cpus=0,
        console=nowhere,
        disks=tuple(replace(disk, path=nowhere) for disk in domain.disks),
        channels=tuple(replace(channel, socket=nowhere) for channel in domain.channels),
        kernel=None,
    )
    return {
        "format": _FORMAT,
        "bootstrap": bootstrap,
        "arguments": domain.kernel.arguments if domain.kernel else "",
        "qemu": host.version(),
        "libvirt": host.libvirt_version(),
        "emulator": domain.emulator,
        "machine": domain.machine,
        "cpu": [domain.cpu_mode, _host_cpu()],
        "accelerator": domain.kind,
        "memory": domain.memory,
        "cpus": domain.cpus,
        "devices": hashlib.sha256(domain_xml(devices).encode()).hexdigest(),
        "warm-up": hashlib.sha256(_warm_up()).hexdigest(),
    }


def _host_cpu() -> str:
    """Return what this host's CPU can do: state saved on one may not load on another."""
    text = Path("/proc/cpuinfo").read_text()
    said = re.findall(r"^(?:model name|flags|microcode)\s*:.*$", text.partition("\n\n")[0], re.MULTILINE)
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _warm_up() -> bytes:
    return bootstrap_file("guest/warm-up").read_bytes()


def find_template(cache: Cache, inputs: dict[str, Any]) -> Template:
    """Return the template made from these inputs; TemplateUnusable, with the reason, where there is none."""
    entry = cache.find(key_of(inputs))
    if entry is not None:
        return Template(entry)
    for other in cache.entries():
        former = other.info.get("inputs", {})
        if former.get("bootstrap") == inputs["bootstrap"]:
            changed = {key for key in inputs if former.get(key) != inputs[key]}
            if not changed & _SHAPE:
                named = ", ".join(sorted(changed))
                raise TemplateUnusable(f"the template there is was made with another {named}", hint=_WAY_OUT)
    raise TemplateUnusable("there is no template of it yet", hint=_WAY_OUT)


def make_template(
    cache: Cache, inputs: dict[str, Any], host: Host, domain: Domain, run: Run, deadline: Deadline
) -> Template:
    """Return the template made from ``inputs``, made now where there is none.

    ``domain`` and ``run`` are of the machine that boots for it.  A damaged one is made anew.
    """

    def make(folder: Path) -> dict[str, Any]:
        ram = folder / _RAM
        ram.touch(mode=0o600)
        # The warm-up takes less than the boot.
        soon = deadline.sooner(2 * BOOT_SECONDS[domain.kind])
        with _booted(host, replace(domain, ram=Ram(ram, clone=False)), run, soon) as machine:
            machine.pause()
            machine.save(folder / _STATE, soon)
        (folder / _USES).touch()
        for file in (ram, folder / _STATE):  # a file system may set its times as late as this
            fsync_path(file)
        return {"sealed": _seal(folder), "memory": domain.memory, "cpus": domain.cpus}

    template = Template(cache.get(inputs, make, deadline)[0])
    try:
        template.check()
    except TemplateUnusable:
        cache.remove(template.entry.key)
        template = Template(cache.get(inputs, make, deadline)[0])
    return template


@contextmanager
def _booted(host: Host, domain: Domain, run: Run, deadline: Deadline) -> Iterator[LibvirtMachine]:
    """Yield a machine that has booted, is warm, and waits for a seed."""
    keys = RunKeys.generate()
    socket = domain.socket(SSH_PORT)
    with host.start(domain) as machine:
        with shell.dialled(socket, deadline) as line:
            seed.plant(line, Seed("template", run.name, keys), machine, deadline)
            with shell.opened(line, keys, machine, deadline) as opened:
                answer = opened.run(["sh", "-s"], stdin=_warm_up(), deadline=deadline)
        if answer.code != 0:
            said = answer.stderr.decode("utf-8", "replace").strip()[-500:]
            raise ComposerError(f"the helper cannot be warmed: {said or shlex.quote(str(answer.code))}")
        with shell.dialled(socket, deadline) as line:
            seed.wait_until_waiting(line, machine, deadline)
            time.sleep(_SETTLE_SECONDS)
            yield machine
