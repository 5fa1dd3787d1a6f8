"""What failed for want of room on the host says so, and nothing else does; what cannot be known is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from composer.compose.build import warn_of_hidden
from composer.compose.workshop import Bench, Workshop, full_disk_told
from composer.errors import BadInput, ComposerError, NoSpace
from composer.events import Tape
from composer.helper.bootstrap import BootstrapImage
from composer.helper.lease import HelperShape
from composer.helper.machine import Abilities
from composer.store.cache import Entry
from composer.store.runs import Run
from tests.unit.unprivileged import as_nobody

# A file system on which nothing is ever free.
_FULL = Path("/proc/self")


def _failing(*folders: Path, error: Exception) -> None:
    with full_disk_told(*folders):
        raise error


@pytest.mark.parametrize("error", [ComposerError("no machine", log=Path("a.log")), OSError(5, "odd")])
@pytest.mark.parametrize("more", [["full"], ["roomy", "full"]])
def test_a_failure_beside_a_full_file_system_names_it(
    tmp_path: Path, more: Sequence[str], error: Exception
) -> None:
    folders = [{"full": _FULL, "roomy": tmp_path}[name] for name in more]
    with pytest.raises(NoSpace) as told:
        _failing(*folders, error=error)
    assert told.value.message == "no space left in /proc/self"
    assert (told.value.hint or "").startswith("df -h /proc ")
    assert told.value.detail == str(error), "what was seen is not lost"
    assert told.value.log == getattr(error, "log", None)


def test_a_failure_with_room_is_told_as_it_is(tmp_path: Path) -> None:
    error = ComposerError("no machine")
    with pytest.raises(ComposerError) as told:
        _failing(tmp_path, tmp_path.parent, error=error)
    assert told.value is error


def test_a_full_file_system_is_no_fault_by_itself() -> None:
    with full_disk_told(_FULL):
        pass


def test_files_beside_a_disk_that_cannot_be_read_are_told(
    tmp_path: Path, workshop: Workshop, tape: Tape
) -> None:
    (tmp_path / "secret.qcow2").touch(0o000)
    tmp_path.chmod(0o755)

    def warned() -> None:
        warn_of_hidden(workshop, Path("disk.qcow2"), "update")
        assert "secret.qcow2; a disk that stands on it" in "".join(tape.texts("warning"))

    as_nobody(tmp_path, warned)


class FakeHost:
    """What a template asks of a host."""

    def version(self) -> str:
        return "7.2.22"

    def libvirt_version(self) -> int:
        return 9_000_000


@pytest.mark.parametrize("cold", [True, False])
def test_a_helper_that_is_to_boot_from_cold_asks_for_no_template(
    workshop: Workshop, tape: Tape, tmp_path: Path, cold: bool
) -> None:
    """`--cold` is what the user chose, so nothing is to be reported; a missing template is."""
    workshop = replace(workshop, options=replace(workshop.options, cold=cold))
    image = BootstrapImage(Entry(tmp_path, "b", {"clonable": True}), fresh=False)
    abilities = Abilities("qemu", "/usr/bin/qemu-system-x86_64", "pc-q35-7.2", "maximum")
    bench = Bench(Run(tmp_path / "run"), FakeHost(), image, abilities)  # type: ignore[arg-type]
    assert workshop._template(bench, HelperShape(2**30, 1), warming=False) is None
    told = [] if cold else ["booting the helper from cold: there is no template of it yet"]
    assert [text.partition(";")[0] for text in tape.texts("warning")] == told


@pytest.mark.parametrize(
    ("uid", "as_root", "connect"), [(1000, False, "embed"), (0, True, "embed"), (0, False, "x")]
)
def test_who_needs_no_account_for_helpers(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, uid: int, as_root: bool, connect: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    options = replace(workshop.options, as_root=as_root, connect=connect)
    assert replace(workshop, options=options).account() is None


def test_roots_helpers_have_an_account_or_root_says_that_they_need_none(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("composer.compose.workshop.ACCOUNT", "nobody")
    assert workshop.account() == "nobody"
    monkeypatch.setattr("composer.compose.workshop.ACCOUNT", "no-such-account")
    with pytest.raises(BadInput, match="run as the account no-such-account") as told:
        workshop.account()
    assert "useradd" in (told.value.hint or "")
    assert "--as-root" in (told.value.hint or "")
