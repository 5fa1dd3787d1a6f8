"""What libvirt says of a VM, and what becomes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from composer.errors import ComposerError, HelperDied, NoSpace
from composer.helper.domain import Domain
from composer.helper.hypervisor import LibvirtMachine


@dataclass
class FakeDomain:
    """A domain that is in some state, with disks that have some faults."""

    said: tuple[int, int] = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
    faults: dict[str, int] = field(default_factory=dict)

    def isActive(self) -> int:  # noqa: N802 - libvirt's
        return 1

    def state(self) -> tuple[int, int]:
        return self.said

    def diskErrors(self) -> dict[str, int]:  # noqa: N802 - libvirt's
        if "none" in self.faults:
            raise libvirt.libvirtError("QEMU does not answer")
        return self.faults


def check(domain: FakeDomain) -> None:
    described = Domain("x", "qemu", "", "", "", 0, 1, Path("/none"))
    LibvirtMachine(domain, described, None).check("running a step")


@pytest.mark.parametrize("of", ["console", "report"])
def test_a_guest_that_says_too_much(tmp_path: Path, of: str) -> None:
    console, report = tmp_path / "console", tmp_path / "report"
    machine = LibvirtMachine(
        FakeDomain(said=(libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)),
        Domain("x", "qemu", "", "", "", 0, 1, console, report=report),
        None,
    )
    machine.check("booting")
    log = tmp_path / of
    log.touch()
    os.truncate(log, 2**26)
    machine.check("booting")
    os.truncate(log, 2**26 + 1)
    with pytest.raises(HelperDied, match="said more than 64 MiB while booting"):
        machine.check("booting")


def test_a_full_host_disk() -> None:
    with pytest.raises(NoSpace, match="while running a step"):
        check(FakeDomain(faults={"sda": libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE}))


@pytest.mark.parametrize("faults", [{}, {"sda": libvirt.VIR_DOMAIN_DISK_ERROR_UNSPEC}, {"none": 0}])
def test_another_fault_of_the_host(faults: dict[str, int]) -> None:
    """A quota, or the host's own disk."""
    with pytest.raises(ComposerError, match="could not write or read") as caught:
        check(FakeDomain(faults=faults))
    assert not isinstance(caught.value, NoSpace)
    assert caught.value.hint


@pytest.mark.parametrize(
    "said",
    [
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER),
    ],
)
def test_no_fault(said: tuple[int, int]) -> None:
    check(FakeDomain(said))
