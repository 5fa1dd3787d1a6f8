"""`composer verify`: boots a disk, on a throw-away overlay and without a network, and holds what came up
against what its manifest claims.

First a helper puts a unit into the overlay's default deployment; then the product boots by its own
firmware and bootloader, and the unit reports on the second serial port.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from composer.compose import steps
from composer.compose.build import deployments_of
from composer.compose.target import SERIAL, chain_of, overlay_target
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Bench, Workshop
from composer.disk import image
from composer.disk.manifest import Manifest
from composer.errors import BadInput, VerifyFailed
from composer.helper.domain import Backing, Disk, Domain, Uefi
from composer.helper.job import Job, run_job
from composer.helper.lease import HelperShape
from composer.helper.machine import console_tail
from composer.resources import bootstrap_file
from composer.store.folders import copied

# Pairs of code and variables, by distribution: Debian and Ubuntu, Fedora and RHEL, Arch.
_OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)
_BOOT_SECONDS = {"kvm": 180.0, "qemu": 900.0}
_MEMORY = 2**30
_POLL_SECONDS = 0.2
_MARK = "composer-verify "
_LONGEST_REPORT = 2**18


@dataclass(frozen=True)
class Boot:
    """How one boot of the product went; ``uptime`` is the guest's, in seconds."""

    firmware: str
    commit: str
    state: str
    target: str
    failed: tuple[str, ...]
    waiting: tuple[str, ...]
    uptime: float

    def faults(self, expected: str, firmware: str) -> list[str]:
        """Return what is not as it must be."""
        found = []
        if self.commit != expected:
            found.append(f"it booted {self.commit[:12] or 'no deployment'}, not {expected[:12]}")
        if self.firmware != firmware:
            found.append(f"it came up under {self.firmware or 'unknown firmware'}, not {firmware}")
        if not self.target.endswith(" active"):
            found.append(f"its boot target was not reached ({self.target or 'none'})")
        if self.failed:
            found.append(f"failed units: {', '.join(self.failed)}")
        if self.waiting and self.state != "running":
            found.append(f"still waiting: {', '.join(self.waiting)}")
        if self.state not in ("running", "degraded"):
            found.append(f"systemd calls the system {self.state or 'nothing'}")
        return found


def find_ovmf() -> tuple[Path, Path] | None:
    """Return OVMF's code and its empty variables, or None where the host has none."""
    for code, variables in _OVMF:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    return None


def firmwares(asked: str, offered: str) -> list[str]:
    """Return the firmwares to boot under: ``asked`` is one, 'all', or 'auto' (the first offered)."""
    have = offered.split("+")
    if asked == "all":
        return have
    if asked == "auto":
        return have[:1]
    if asked not in have:
        raise BadInput(f"the disk boots under {offered}, not under {asked}")
    return [asked]


def verify(workshop: Workshop, disk: Path, asked: str, keep_evidence: Path | None) -> list[Boot]:
    """Boot ``disk`` under each firmware asked for; return how the boots went.

    Raises VerifyFailed, with console and screenshot kept, where a boot is not as it must be.
    """
    known_disk(disk)
    with workshop.work(disk, "verify") as work:
        manifest = known_disk(disk)
        chosen = firmwares(asked, manifest.firmware)
        if "uefi" in chosen and find_ovmf() is None:
            raise BadInput(
                "UEFI firmware (OVMF) is not installed", hint="apt install ovmf   or   dnf install edk2-ovmf"
            )
        bootstrap = bootstrap_for(workshop, manifest, None, steps.ARM_STEPS)
        evidence = keep_evidence or workshop.logs / f"verify-{disk.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        with (
            workshop.folder(work, replaces=False) as folder,
            workshop.bench(f"verify {disk.name}", bootstrap, work) as bench,
        ):
            armed = folder / "armed.qcow2"
            target = overlay_target(armed, disk, workshop.deadline)
            commit = _arm(workshop, bench, manifest, target)
            if commit != manifest.commit:
                raise VerifyFailed(
                    f"the default deployment is {commit[:12]}, the manifest says {manifest.commit[:12]}",
                    hint=f"composer update {disk}   brings the two together",
                )
            return [_boot(workshop, bench, armed, disk, manifest, firmware, evidence) for firmware in chosen]


def _arm(workshop: Workshop, bench: Bench, manifest: Manifest, target: Disk) -> str:
    """Put the reporting unit into the overlay; return the commit of its default deployment."""
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    data = {
        **steps.partition_data(manifest.partitions),
        "verify-report": bootstrap_file("verify/report").read_bytes(),
        "composer-verify.service": bootstrap_file("verify/composer-verify.service").read_bytes(),
    }
    with workshop.helper(bench, shape) as helper:
        helper.machine.attach(target)
        result = run_job(helper.shell, Job(steps.ARM_STEPS, data), workshop.reporter, workshop.deadline)
        helper.machine.detach(target, workshop.deadline)
    found = deployments_of(result)
    return found[0].commit if found else ""


def _boot(
    workshop: Workshop,
    bench: Bench,
    armed: Path,
    disk: Path,
    manifest: Manifest,
    firmware: str,
    evidence: Path,
) -> Boot:
    overlay = armed.with_name(f"boot-{firmware}.qcow2")
    image.create_overlay(overlay, armed, workshop.deadline)
    folder = bench.run.path
    console, report = folder / f"{firmware}.console.log", folder / f"{firmware}.report"
    report.touch(mode=0o600)
    chain = Backing(armed, "qcow2", chain_of(disk))
    domain = Domain(
        name=f"{bench.run.name}-{firmware}",
        kind=bench.abilities.kind,
        emulator=bench.abilities.emulator,
        machine=bench.abilities.machine,
        cpu_mode=bench.abilities.cpu_mode,
        memory=_MEMORY,
        cpus=manifest.helper.cpus,
        console=console,
        report=report,
        screen=True,
        uefi=_uefi(folder) if firmware == "uefi" else None,
        disks=(Disk(overlay, "qcow2", SERIAL, "sda", boot=True, backing=chain),),
    )
    deadline = workshop.deadline.sooner(_BOOT_SECONDS[bench.abilities.kind])
    with workshop.reporter.phase(
        f"boot-{firmware}", f"booting the product ({firmware}, {bench.accelerator})"
    ):
        with bench.host.start(domain) as machine:
            while "end" not in _report(report) and machine.running() and not deadline.expired:
                time.sleep(_POLL_SECONDS)
                machine.check_files("booting the product")
            screenshot = machine.screenshot(folder / firmware) if machine.running() else None
        boot = _read_boot(report)
        faults = boot.faults(manifest.commit, firmware) if "end" in _report(report) else []
        if "end" not in _report(report):
            how = (
                "did not finish its boot in time"
                if deadline.expired
                else "ended before its boot was finished"
            )
            faults = [f"the product {how}"]
        if faults:
            evidence.mkdir(parents=True, exist_ok=True)
            for file in (console, report, screenshot):
                if file is not None and file.exists():
                    shutil.copyfile(file, evidence / file.name)
            raise VerifyFailed(
                f"{disk} under {firmware}: {'; '.join(faults)}",
                detail=console_tail(console),
                log=evidence,
                disk="the disk is as it was; the boot ran on an overlay",
            )
    return boot


def _uefi(folder: Path) -> Uefi:
    found = find_ovmf()
    assert found is not None
    code, empty = found
    variables = folder / "uefi.vars"
    copied(empty, variables)
    return Uefi(code, variables)


def _report(path: Path) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    with path.open("rb") as file:
        text = file.read(_LONGEST_REPORT).decode("utf-8", "replace")
    for line in text.splitlines():
        if line.startswith(_MARK):
            key, _, value = line.removeprefix(_MARK).partition(" ")
            said.setdefault(key, []).append(value.strip()[:1024])
    return said


def _read_boot(path: Path) -> Boot:
    said = _report(path)

    def first(key: str) -> str:
        return said.get(key, [""])[0]

    folder = Path(first("deployment")).name if first("booted") == "yes" else ""
    uptime = first("uptime")
    return Boot(
        firmware=first("firmware"),
        commit=folder.partition(".")[0],
        state=first("state"),
        target=first("target"),
        failed=tuple(said.get("failed", ())),
        waiting=tuple(said.get("waiting", ())),
        uptime=float(uptime) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", uptime) else 0.0,
    )
