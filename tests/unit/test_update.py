"""A whole update with a machine and a guest that are fakes: what was attached, and what the disk is then."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from composer.compose.update import Overrides, update
from composer.compose.workshop import Bench, Options, Workshop
from composer.deadline import Deadline
from composer.disk.manifest import Manifest, load_manifest, manifest_path
from composer.errors import BadInput, ComposerError, GuestStepFailed, HelperDied
from composer.events import Reporter, Tape
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Disk
from composer.helper.lease import Helper, HelperShape
from composer.helper.machine import Abilities
from composer.helper.shell import Answer, Tunnel
from composer.repo.local import Repo
from composer.store.cache import Entry
from composer.store.folders import Folders
from composer.store.runs import Run

OLD = "1" * 64


@dataclass
class FakeMachine:
    """A machine that remembers its disks and writes to those it is told to."""

    console: Path
    attached: list[Disk] = field(default_factory=list)

    def running(self) -> bool:
        return True

    def attach(self, disk: Disk) -> None:
        self.attached.append(disk)

    def detach(self, disk: Disk, deadline: Deadline) -> None:
        pass

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def keep(self) -> None:
        pass

    def wait_end(self, deadline: Deadline) -> bool:
        return True

    def screenshot(self, path: Path) -> Path | None:
        return None

    def death(self, doing: str) -> HelperDied:
        return HelperDied(doing)


@dataclass
class FakeShell:
    """A guest that answers each job with the same lines."""

    lines: Sequence[object]
    before: Callable[[], None] = lambda: None
    listened: bool = False

    def interact(self) -> int:
        return 0

    @contextmanager
    def listening(self, serve: Callable[[Tunnel], None], deadline: Deadline) -> Iterator[int]:
        self.listened = True
        yield 4711

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Answer:
        self.before()
        for line in self.lines:
            assert on_stdout is not None
            on_stdout(json.dumps(line).encode() + b"\n")
        return Answer(0, b"", b"")


@dataclass(frozen=True)
class FakeWorkshop(Workshop):
    """A workshop whose helpers are fakes."""

    machine: FakeMachine = field(kw_only=True)
    shell: FakeShell = field(kw_only=True)

    def bootstrap(self, repo: Repo, commit: str, steps: tuple[str, ...]) -> BootstrapImage:
        return BootstrapImage(
            Entry(Path("/none"), "none", {"programs": [], "modules": [], "kernel": "6.1"}), fresh=False
        )

    @contextmanager
    def bench(self, purpose: str, image: BootstrapImage) -> Iterator[Bench]:
        yield Bench(Run(Path("/none")), None, image, Abilities("qemu", "", "", ""))  # type: ignore[arg-type]

    @contextmanager
    def helper(self, bench: Bench, shape: HelperShape, *, warming: bool = False) -> Iterator[Helper]:
        yield Helper(self.machine, self.shell, bench.run)


def said(commit: str) -> list[object]:
    values = [["deployment", f"{commit} 1 demo os/good 7.1"], ["deployment", f"{OLD} 0 demo - -"]]
    return [{"event": "start", "step": "deploy"}, {"event": "result", "values": values}]


@pytest.fixture
def commit(tiny_repo: Path) -> str:
    return (tiny_repo / "refs/heads/os/good").read_text().strip()


@pytest.fixture
def workshop(tmp_path: Path, commit: str) -> FakeWorkshop:
    return FakeWorkshop(
        folders=Folders(tmp_path / "cache", tmp_path / "runs"),
        reporter=Reporter(Tape()),
        options=Options(),
        deadline=Deadline.after(20),
        machine=FakeMachine(tmp_path / "console"),
        shell=FakeShell(said(commit)),
    )


@pytest.fixture
def old_disk(good_disk: Path, manifest_of: Callable[..., Manifest], tiny_repo: Path) -> Path:
    """Make a disk that has an older commit."""
    manifest_path(good_disk).write_text(manifest_of(good_disk, OLD, str(tiny_repo)).model_dump_json())
    return good_disk


def beside(disk: Path) -> set[str]:
    return {path.name for path in disk.parent.iterdir() if disk.name in path.name}


def test_update(workshop: FakeWorkshop, old_disk: Path, commit: str) -> None:
    outcome = update(workshop, old_disk, Overrides())
    manifest = load_manifest(old_disk)
    assert manifest == outcome.manifest
    assert manifest is not None
    assert [deployment.commit for deployment in manifest.deployments] == [commit, OLD]
    assert [deed.what for deed in manifest.history] == ["update"]
    assert beside(old_disk) == {old_disk.name, manifest_path(old_disk).name}
    assert not update(workshop, old_disk, Overrides()).changed


def test_the_disk_itself_is_never_attached_for_writing(workshop: FakeWorkshop, old_disk: Path) -> None:
    update(workshop, old_disk, Overrides())
    target, delta = workshop.machine.attached
    assert delta.readonly
    assert target.path != old_disk
    assert target.backing is not None
    assert target.backing.path == old_disk


@pytest.mark.parametrize("failure", [GuestStepFailed("pull", "x"), KeyboardInterrupt(), OSError("full")])
def test_failure_leaves_the_disk(workshop: FakeWorkshop, old_disk: Path, failure: BaseException) -> None:
    before = {path: path.read_bytes() for path in (old_disk, manifest_path(old_disk))}

    def fail() -> None:
        raise failure

    workshop.shell.before = fail
    with pytest.raises(type(failure)):
        update(workshop, old_disk, Overrides())
    assert {path: path.read_bytes() for path in before} == before
    assert beside(old_disk) == {path.name for path in before}


def test_a_disk_that_somebody_else_wrote_to_stays(workshop: FakeWorkshop, old_disk: Path) -> None:
    with old_disk.open("ab") as file:  # what the update starts from
        file.truncate(old_disk.stat().st_size + 2**16)
    workshop.shell.before = old_disk.touch
    with pytest.raises(ComposerError, match="changed by somebody else"):
        update(workshop, old_disk, Overrides())


def test_a_disk_with_a_base_is_attached_with_it(
    workshop: FakeWorkshop, old_disk: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.qcow2"
    old_disk.rename(base)
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, old_disk]
    subprocess.run(argv, check=True)
    update(workshop, old_disk, Overrides())
    target, delta = workshop.machine.attached
    assert delta.readonly
    assert target.backing is not None
    assert target.backing.below is not None
    assert target.backing.below.path == base


@pytest.mark.parametrize("values", [[], [["deployment", f"{'3' * 64} 0 demo - -"]]])
def test_a_guest_that_reports_something_else(
    workshop: FakeWorkshop, old_disk: Path, values: list[list[str]]
) -> None:
    workshop.shell.lines = [{"event": "result", "values": values}]
    with pytest.raises(ComposerError):
        update(workshop, old_disk, Overrides())


def test_internal_snapshots_are_not_lost_silently(workshop: FakeWorkshop, old_disk: Path) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", old_disk], check=True)
    with pytest.raises(BadInput, match="internal snapshots"):
        update(workshop, old_disk, Overrides())
    assert workshop.machine.attached == []
