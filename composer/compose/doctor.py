"""`composer doctor`: every need of the machine, tried for real, with the command that mends each."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from composer import process
from composer.compose.supply import virtiofs_obstacle
from composer.compose.verify import find_ovmf
from composer.deadline import Deadline
from composer.errors import FREE_ROOM, ComposerError
from composer.helper import hypervisor, probe
from composer.helper.bootstrap import BootstrapImage, cache_of
from composer.recipe.values import show_size
from composer.store.folders import Folders, has_reflinks
from composer.store.runs import Runs

_TOOLS = ("ostree", "qemu-img", "sqfstar", "busybox", "setpriv")
# Without them a commit goes over HTTP, and kernels whose modules are packed by zstd are refused.
_FURTHER_TOOLS = ("mke2fs", "zstd")
_DISK_NEEDED = 4 * 2**30
_MEMORY_NEEDED = 2 * 2**30
_TOOL_SECONDS = 20.0


@dataclass(frozen=True)
class Finding:
    """One need: 'good', 'weak' (works, but slower or less), or 'bad' (jobs will fail)."""

    need: str
    state: Literal["good", "weak", "bad"]
    found: str
    mend: str | None = None


def examine(folders: Folders, connect: str) -> Iterator[Finding]:
    """Yield a finding for each need, in an order in which one mends them."""
    for tool in _TOOLS:
        yield _tool(tool)
    for tool in _FURTHER_TOOLS:
        found = _tool(tool)
        yield found if found.state == "good" else replace(found, state="weak")
    yield from _virtualisation(folders, connect)
    yield _ovmf()
    yield _room("disk space for the cache", folders.cache)
    yield _reflinks(folders.cache)
    yield _virtiofs()
    yield _memory()
    yield _confinement()


def _tool(tool: str) -> Finding:
    try:
        path = process.find_tool(tool)
        if tool == "busybox" and b"/ld-linux" in Path(path).read_bytes():
            return Finding(tool, "bad", f"{path} is not static", "apt install busybox-static")
        flag = {"sqfstar": "-version", "busybox": "--help", "mke2fs": "-V"}.get(tool, "--version")
        done = process.run([tool, flag], deadline=Deadline.after(_TOOL_SECONDS), ok=(0, 1))
        said = done.text or done.stderr.decode("utf-8", "replace")  # mke2fs says it there
    except ComposerError as error:
        return Finding(tool, "bad", error.message, error.hint)
    first = next((line.strip() for line in said.splitlines() if any(c.isdigit() for c in line)), "")
    return Finding(tool, "good", f"{path}: {first}"[:120])


def _virtualisation(folders: Folders, connect: str) -> Iterator[Finding]:
    with Runs.of(folders).open("doctor") as run:
        try:
            with hypervisor.connected(connect, folders.runs, folders.cache / "libvirt") as host:
                yield Finding("libvirt", "good", f"answers at {host.uri.partition('?')[0]}")
                emulated = host.abilities("qemu")
                if emulated is None:
                    yield Finding(
                        "QEMU", "bad", "libvirt offers no x86_64 q35 machine", "apt install qemu-system-x86"
                    )
                    return
                yield Finding(
                    "QEMU", "good", f"{emulated.emulator}: {host.version()}, machine {emulated.machine}"
                )
                yield _kvm(host, folders, run.path)
        except ComposerError as error:
            yield Finding("libvirt", "bad", error.message, error.hint)


def _kvm(host: hypervisor.Host, folders: Folders, scratch: Path) -> Finding:
    images = sorted(cache_of(folders.cache).entries(), key=lambda entry: entry.last_used)
    if not images:
        return Finding(
            "KVM",
            "weak",
            "not tried yet: that takes a guest, and there is no bootstrap image to run",
            "composer bootstrap build RECIPE   and then   composer doctor",
        )
    image = BootstrapImage(images[-1], fresh=False)
    verdict = probe.kvm_verdict(host, image, folders.cache, scratch, afresh=True)
    if verdict.usable:
        return Finding("KVM", "good", verdict.reason)
    return Finding(
        "KVM",
        "weak",
        f"not usable, guests are emulated (some ten times slower): {verdict.reason}",
        "sudo usermod -aG kvm $USER   and a new login"
        if "group kvm" in verdict.reason
        else "enable (nested) virtualisation for this host",
    )


def _ovmf() -> Finding:
    found = find_ovmf()
    if found is None:
        return Finding(
            "UEFI firmware", "weak", "not installed; verify can boot under BIOS alone", "apt install ovmf"
        )
    return Finding("UEFI firmware", "good", str(found[0]))


def _room(need: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{show_size(free)} free in {folder}"
    if free < _DISK_NEEDED:
        return Finding(need, "bad", text, FREE_ROOM)
    return Finding(need, "good", text)


def _reflinks(folder: Path) -> Finding:
    how = "share blocks (reflinks)" if has_reflinks(folder) else "take room, holes aside: no reflinks here"
    return Finding("copies in the cache", "good", how)


def _virtiofs() -> Finding:
    obstacle = virtiofs_obstacle()
    if obstacle is None:
        return Finding("virtiofs", "good", "virtiofsd is there, and we are root")
    return Finding("virtiofs", "good", f"not here: {obstacle}; the other transports do without")


def _confinement() -> Finding:
    """Tell what stands between a guest that has broken out of QEMU and this host."""
    account = pwd.getpwuid(os.geteuid()).pw_name
    try:
        label = Path("/proc/self/attr/current").read_text().strip("\0\n") or "none"
    except OSError:  # neither AppArmor nor SELinux
        label = "none"
    text = (
        f"QEMU's seccomp sandbox; account {account}; AppArmor or SELinux: {label}; no namespaces of its own"
    )
    if os.geteuid() == 0:
        return Finding(
            "confinement of QEMU", "weak", text, "run composer as an ordinary user, with its rights alone"
        )
    return Finding("confinement of QEMU", "good", text)


def _memory() -> Finding:
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in meminfo}
    free = int(fields["MemAvailable"]) * 1024
    text = f"{show_size(free)} available, {os.cpu_count()} CPUs"
    if free < _MEMORY_NEEDED:
        return Finding("memory", "bad", text, '[bootstrap] memory = "512 MiB"   in the recipe needs less')
    return Finding("memory", "good", text)


def all_findings(folders: Folders, connect: str, told: Callable[[Finding], None]) -> list[Finding]:
    """Return all findings, telling each as it is made."""
    findings = []
    for finding in examine(folders, connect):
        told(finding)
        findings.append(finding)
    return findings
