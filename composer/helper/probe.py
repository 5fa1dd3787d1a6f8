"""Which accelerator to use.  That /dev/kvm opens proves nothing: some hosts have one on which guests
hang or QEMU aborts.  So a guest is run on it, once per kernel and QEMU version.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import ComposerError
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import DirectKernel, Domain
from composer.helper.hypervisor import Host
from composer.helper.machine import Abilities
from composer.store.cache import key_of
from composer.store.folders import is_full, written_beside

# A guest on working KVM needs about one second to get there.
PROBE_SECONDS = 10.0
_REFUSAL_SECONDS = 24 * 3600.0
_REACHED = b"composer: probe reached"
_MEMORY = 2**28
_DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Verdict:
    """Whether KVM can be used, and in words why (not)."""

    usable: bool
    reason: str


def choose(
    host: Host, image: BootstrapImage, cache: Path, scratch: Path, wanted: str
) -> tuple[Abilities, Verdict]:
    """Return what to run helpers with, and why.

    ``wanted`` is 'auto', 'kvm' or 'tcg'; 'kvm' raises ComposerError where it is not usable.
    """
    emulated = host.abilities("qemu")
    if emulated is None:
        raise ComposerError("libvirt offers no x86_64 machine at all", hint="composer doctor")
    if wanted == "tcg":
        return emulated, Verdict(False, "asked for by --accel tcg")
    verdict = kvm_verdict(host, image, cache, scratch)
    accelerated = host.abilities("kvm")
    if verdict.usable and accelerated:
        return accelerated, verdict
    if wanted == "kvm":
        raise ComposerError(f"KVM is not usable: {verdict.reason}", hint="--accel auto   falls back to TCG")
    return emulated, verdict


def kvm_verdict(
    host: Host,
    image: BootstrapImage,
    cache: Path,
    scratch: Path,
    *,
    afresh: bool = False,
    device: Path = _DEVICE,
) -> Verdict:
    """Return whether a guest runs on KVM; asked of the machine once, then of the cache.

    A refusal is asked for again after a day: load, or another tenant, may have been its cause.
    ``afresh`` asks now.  ``scratch`` is a folder for the probe's console.
    """
    reason = _cannot_open(device)
    if reason:
        return Verdict(False, reason)
    abilities = host.abilities("kvm")
    if abilities is None:
        return Verdict(False, "libvirt finds no usable KVM on this host")
    inputs = {
        "kernel": platform.release(),
        "boot": _boot_id(),
        "qemu": host.version(),
        "machine": abilities.machine,
        "cpu": abilities.cpu_mode,
    }
    remembered = cache / "accelerator" / f"{key_of(inputs)}.json"
    if not afresh and (verdict := _remembered(remembered)):
        return verdict
    verdict = _run_probe(host, image, abilities, scratch)
    if not verdict.usable and is_full(scratch):  # QEMU had no room to run in, which says nothing of KVM
        return verdict
    remembered.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(remembered) as new:
        new.write_text(json.dumps({"usable": verdict.usable, "reason": verdict.reason, "inputs": inputs}))
    return verdict


def _remembered(path: Path) -> Verdict | None:
    try:
        said = json.loads(path.read_text())
        verdict = Verdict(bool(said["usable"]), str(said["reason"]))
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if verdict.usable or age < _REFUSAL_SECONDS else None


def _cannot_open(device: Path) -> str | None:
    if not device.exists():
        return f"there is no {device}"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror} (is the user in the group kvm?)"
    return None


def _boot_id() -> str:
    # A host that was rebooted may be another one, under another hypervisor.
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _run_probe(host: Host, image: BootstrapImage, abilities: Abilities, scratch: Path) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="probe.", dir=scratch) as name:
        folder = Path(name)
        domain = Domain(
            name=f"{scratch.name}-probe",
            kind=abilities.kind,
            emulator=abilities.emulator,
            machine=abilities.machine,
            cpu_mode=abilities.cpu_mode,
            memory=_MEMORY,
            cpus=1,
            console=folder / "console.log",
            kernel=DirectKernel(image.vmlinuz, image.initramfs, "console=ttyS0 panic=-1 composer.probe"),
        )
        deadline = Deadline.after(PROBE_SECONDS)
        try:
            with host.start(domain) as machine:
                while not deadline.expired:
                    # Asked first: a guest may say its word and end before we look at the console.
                    running = machine.running()
                    if _REACHED in domain.console.read_bytes():
                        return Verdict(True, "a guest ran on it")
                    if not running:
                        return Verdict(False, "/dev/kvm opens, but QEMU ends as it runs a guest on it")
                    time.sleep(0.05)
        except ComposerError as error:
            said = error.message.rpartition("qemu-system-x86_64: ")[2].partition("\n")[0]
            return Verdict(False, f"/dev/kvm opens, but QEMU ends on it: {said[:160]}")
    return Verdict(False, f"a guest on it hangs: nothing came in {PROBE_SECONDS:.0f} s")
