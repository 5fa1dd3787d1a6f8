"""The accelerator's probe with a host that stands in for libvirt: what is believed, and for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.errors import ComposerError
from composer.helper import probe
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Domain
from composer.helper.machine import Abilities
from composer.helper.probe import Verdict, choose, kvm_verdict
from composer.store.cache import Entry

IMAGE = BootstrapImage(Entry(Path("/cache/b"), "b", {}), fresh=False)
_MSR = "process exited while connecting to monitor: qemu-system-x86_64: error: failed to set MSR"


class Guest:
    """A machine that has ended, or one that never will."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs

    def running(self) -> bool:
        return self._hangs


class FakeHost:
    """A libvirt whose guests on KVM do as they are told; ``probed`` counts them."""

    def __init__(self, guest: Callable[[Domain], None], *, hangs: bool = False) -> None:
        self.guest = guest
        self._hangs = hangs
        self.probed = 0

    def version(self) -> str:
        return "7.2.22"

    def abilities(self, kind: str) -> Abilities | None:
        return Abilities(kind, "/usr/bin/qemu-system-x86_64", "pc-q35-7.2", "maximum")

    @contextmanager
    def start(self, domain: Domain) -> Iterator[Guest]:
        self.probed += 1
        domain.console.touch()
        self.guest(domain)
        yield Guest(hangs=self._hangs)


def reaches(domain: Domain) -> None:
    domain.console.write_text("[    0.1] booting\ncomposer: probe reached\n")


def ends(domain: Domain) -> None:
    domain.console.write_text("[    0.1] booting\n")


def aborts(_domain: Domain) -> None:
    raise ComposerError(f"the VM c1-probe cannot start: {_MSR} 0x10a")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that opens, as the one that lies does."""
    path = tmp_path / "kvm"
    path.touch()
    return path


@pytest.fixture
def asked(tmp_path: Path, device: Path) -> Callable[..., Verdict]:
    scratch = tmp_path / "c1"
    scratch.mkdir()

    def ask(host: FakeHost, *, afresh: bool = False) -> Verdict:
        cache = tmp_path / "cache"
        return kvm_verdict(host, IMAGE, cache, scratch, afresh=afresh, device=device)  # type: ignore[arg-type]

    return ask


def remembered(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("accelerator/*.json"))


def test_kvm_is_believed_when_a_guest_ran_on_it(asked: Callable[..., Verdict]) -> None:
    assert asked(FakeHost(reaches)) == Verdict(True, "a guest ran on it")


@pytest.mark.parametrize(
    ("guest", "reason"),
    [(ends, "QEMU ends as it runs a guest on it"), (aborts, "error: failed to set MSR 0x10a")],
)
def test_a_device_that_opens_proves_nothing(
    asked: Callable[..., Verdict], guest: Callable[[Domain], None], reason: str
) -> None:
    verdict = asked(FakeHost(guest))
    assert not verdict.usable
    assert verdict.reason.startswith("/dev/kvm opens, but ")
    assert verdict.reason.endswith(reason)


def test_a_guest_that_hangs_is_not_waited_for_without_end(
    asked: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
    assert "hangs" in asked(FakeHost(ends, hangs=True)).reason


@pytest.mark.parametrize("guest", [reaches, aborts])
def test_the_answer_is_remembered_and_asked_for_anew_on_demand(
    asked: Callable[..., Verdict], guest: Callable[[Domain], None]
) -> None:
    host = FakeHost(guest)
    first = asked(host)
    assert asked(host) == first
    assert host.probed == 1
    assert asked(host, afresh=True) == first
    assert host.probed == 2


def test_a_refusal_is_doubted_after_a_day_a_success_is_not(
    asked: Callable[..., Verdict], tmp_path: Path
) -> None:
    host = FakeHost(aborts)
    asked(host)
    yesterday = time.time() - 25 * 3600
    for said in remembered(tmp_path):
        os.utime(said, (yesterday, yesterday))
    host.guest = reaches
    assert asked(host).usable
    for said in remembered(tmp_path):
        os.utime(said, (yesterday, yesterday))
    assert asked(host).usable
    assert host.probed == 2


def test_a_refusal_that_a_full_file_system_caused_is_not_remembered(
    asked: Callable[..., Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "is_full", lambda _folder: True)
    host = FakeHost(aborts)
    assert not asked(host).usable
    assert remembered(tmp_path) == []
    host.guest = reaches
    assert asked(host).usable, "with room again, or where a guest runs all the same"
    assert remembered(tmp_path) != []


def test_without_a_device_no_guest_is_tried(
    asked: Callable[..., Verdict], device: Path, tmp_path: Path
) -> None:
    device.unlink()
    host = FakeHost(reaches)
    assert asked(host) == Verdict(False, f"there is no {device}")
    assert host.probed == 0


def test_emulation_that_was_asked_for_probes_nothing(tmp_path: Path) -> None:
    host = FakeHost(aborts)
    chosen, verdict = choose(host, IMAGE, tmp_path, tmp_path, "tcg")  # type: ignore[arg-type]
    assert (chosen.kind, verdict.reason, host.probed) == ("qemu", "asked for by --accel tcg", 0)
