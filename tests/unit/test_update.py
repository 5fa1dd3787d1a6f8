"""A whole update with a machine and a guest that are fakes: what was attached, and what the disk is then."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from composer.compose.build import build
from composer.compose.rollback import rollback
from composer.compose.update import Overrides, check_rooms, update
from composer.compose.workshop import Bench, Options, Workshop, told_of
from composer.deadline import Deadline
from composer.disk import image
from composer.disk.manifest import (
    HelperSettings,
    Identity,
    Manifest,
    Room,
    load_manifest,
    manifest_path,
    publish_disk,
)
from composer.disk.qcow2 import check_chain, check_disk
from composer.errors import BadInput, ComposerError, GuestStepFailed, HelperDied
from composer.events import Reporter, Tape
from composer.helper.bootstrap import BootstrapImage, cache_of, inputs_of
from composer.helper.domain import Disk
from composer.helper.lease import Helper, HelperShape
from composer.helper.machine import Abilities
from composer.helper.shell import Answer, Tunnel
from composer.recipe.load import load_recipe
from composer.repo.local import Repo
from composer.store.cache import Entry
from composer.store.folders import Folders
from composer.store.runs import Run
from composer.store.work import Work

OLD = "1" * 64


@dataclass
class FakeMachine:
    """A machine that remembers its disks and writes to those it is told to."""

    console: Path
    attached: list[Disk] = field(default_factory=list)

    def running(self) -> bool:
        return True

    def check(self, doing: str) -> None: ...

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

    lines: list[object]
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
        silence: float | None = None,
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
    def bench(self, purpose: str, image: BootstrapImage, work: Work | None = None) -> Iterator[Bench]:
        yield Bench(Run(Path("/none")), None, image, Abilities("qemu", "", "", ""))  # type: ignore[arg-type]

    @contextmanager
    def helper(self, bench: Bench, shape: HelperShape, *, warming: bool = False) -> Iterator[Helper]:
        yield Helper(self.machine, self.shell, bench.run)


def said(commit: str) -> list[object]:
    values = [["deployment", f"{commit} 1 demo os/good 7.1"], ["deployment", f"{OLD} 0 demo - -"]]
    values += [["root-used", "1000000"], ["root-free", "2000000"]]
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


def test_a_disk_that_was_written_to_in_the_field_is_never_replaced_unasked(
    workshop: FakeWorkshop, old_disk: Path, commit: str, tiny_repo: Path, tmp_path: Path
) -> None:
    os.utime(old_disk)
    first = update(workshop, old_disk, Overrides()).manifest
    assert first.written is not None
    assert first.disk == Identity.of(old_disk)
    workshop.shell.lines[:] = said(OLD)
    rollback(workshop, old_disk)
    kept = load_manifest(old_disk)
    assert kept is not None
    assert kept.written == first.written
    path = tmp_path / "demo.toml"
    path.write_text(f'name = "demo"\n[ostree]\nrepo = "{tiny_repo}"\nref = "os/good"\nkargs = ["quiet"]\n')
    loaded, before = load_recipe(path, {}), old_disk.read_bytes()
    with pytest.raises(BadInput, match="since it was built") as caught:
        build(workshop, loaded, old_disk)
    assert "--force" in (caught.value.hint or "")
    assert old_disk.read_bytes() == before
    workshop.shell.lines[:] = said(commit)
    tape = Tape()
    forced = build(replace(workshop, reporter=Reporter(tape)), loaded, old_disk, force=True)
    assert any("since it was built" in text for text in tape.texts("warning"))
    assert forced.manifest.written is None
    workshop.shell.lines[:] = said(commit)
    assert not build(workshop, loaded, old_disk).changed


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
    with pytest.raises(ComposerError if isinstance(failure, OSError) else type(failure)):
        update(workshop, old_disk, Overrides())
    assert {path: path.read_bytes() for path in before} == before
    assert beside(old_disk) == {path.name for path in before}


def test_a_disk_that_somebody_else_wrote_to_stays(workshop: FakeWorkshop, old_disk: Path) -> None:
    with old_disk.open("ab") as file:  # what the update starts from
        file.truncate(old_disk.stat().st_size + 2**16)
    workshop.shell.before = old_disk.touch
    with pytest.raises(ComposerError, match="changed by somebody else"):
        update(workshop, old_disk, Overrides())


@pytest.mark.parametrize(
    ("said", "ref"), [("cpus = 3", "os/good"), ('cpus = 3\nref = "os/no-kernel"', "os/no-kernel")]
)
def test_a_recipe_may_name_another_tree_for_the_helper(
    workshop: FakeWorkshop, old_disk: Path, tiny_repo: Path, tmp_path: Path, said: str, ref: str
) -> None:
    path = tmp_path / "x.toml"
    ostree = f'[ostree]\nrepo = "{tiny_repo}"\nref = "os/good"\nstateroot = "demo"\n'
    path.write_text(f'name = "x"\n{ostree}[bootstrap]\n{said}\n')
    # Another tree is looked up; the former helper's commit need not be what its ref names now.
    commit = OLD if ref == "os/good" else (tiny_repo / "refs/heads" / ref).read_text().strip()
    known = load_manifest(old_disk)
    assert known is not None
    wanted = HelperSettings(ref=ref, commit=commit, memory=known.helper.memory, cpus=3)
    assert update(workshop, old_disk, Overrides(load_recipe(path, {}))).manifest.helper == wanted
    # Where there is nothing to update, too.
    path.write_text(path.read_text().replace("cpus = 3", "cpus = 4"))
    assert not update(workshop, old_disk, Overrides(load_recipe(path, {}))).changed
    kept = load_manifest(old_disk)
    assert kept is not None
    assert kept.helper == wanted.model_copy(update={"cpus": 4})


def test_a_helper_that_lacks_programs_gives_way_to_what_its_ref_names_now(
    workshop: FakeWorkshop, old_disk: Path, commit: str
) -> None:
    """They may have been added to the tree since."""
    tape = Tape()
    workshop = replace(workshop, reporter=Reporter(tape))
    inputs = inputs_of(OLD)
    cache_of(workshop.folders.cache).get(
        inputs, lambda _: {"programs": [], "modules": [], "commit": OLD}, workshop.deadline
    )
    assert update(workshop, old_disk, Overrides()).manifest.commit == commit
    assert "the helper's former commit lacks programs; using os/good of now" in tape.texts("note")


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


@pytest.mark.parametrize("named", ["base.qcow2", "absolute"])
def test_a_disk_on_a_base_stays_on_it_and_the_base_is_not_written(
    workshop: FakeWorkshop, old_disk: Path, tmp_path: Path, named: str
) -> None:
    base = old_disk.with_name("base.qcow2")
    old_disk.rename(base)
    below = base if named == "absolute" else named
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, old_disk]
    subprocess.run(argv, check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", old_disk], check=True)
    before = base.read_bytes()
    base.chmod(0o444)
    update(workshop, old_disk, Overrides())
    assert check_disk(old_disk).backing == str(below)
    assert old_disk.stat().st_size < 2**20
    read = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", old_disk], capture_output=True)
    assert b"Pattern verification failed" not in read.stdout
    # Again and again, and the chain grows no longer.
    update(workshop, old_disk, Overrides(compact=True))
    assert len(check_chain(old_disk).bases) == 1
    assert base.read_bytes() == before
    update(workshop, old_disk, Overrides(flatten="always"))
    assert check_disk(old_disk).backing is None


@pytest.mark.parametrize("verb", [lambda w, d: update(w, d, Overrides()), rollback])
def test_a_base_of_other_disks_is_not_replaced(
    workshop: FakeWorkshop, old_disk: Path, commit: str, verb: Callable[[FakeWorkshop, Path], object]
) -> None:
    update(workshop, old_disk, Overrides())
    workshop.machine.attached.clear()
    overlay = old_disk.with_name("overlay.qcow2")
    argv: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        old_disk,
        overlay,
    ]
    subprocess.run(argv, check=True)
    with pytest.raises(BadInput, match=r"is the base of overlay\.qcow2"):
        verb(workshop, old_disk)
    assert workshop.machine.attached == []


def test_a_base_that_changes_meanwhile(workshop: FakeWorkshop, old_disk: Path) -> None:
    base = old_disk.with_name("base.qcow2")
    old_disk.rename(base)
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, old_disk]
    subprocess.run(argv, check=True)
    before = old_disk.read_bytes()
    workshop.shell.before = base.touch
    with pytest.raises(ComposerError, match="changed by somebody else"):
        update(workshop, old_disk, Overrides())
    assert old_disk.read_bytes() == before


def test_rollback_loses_no_internal_snapshots(workshop: FakeWorkshop, old_disk: Path) -> None:
    update(workshop, old_disk, Overrides())
    manifest = load_manifest(old_disk)
    assert manifest is not None
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", old_disk], check=True)
    known = manifest.model_copy(update={"disk": Identity.of(old_disk)})
    manifest_path(old_disk).write_text(known.model_dump_json())
    with pytest.raises(BadInput, match="internal snapshots"):
        rollback(workshop, old_disk)


def test_what_was_kept_and_pruned_is_told(workshop: FakeWorkshop, old_disk: Path, commit: str) -> None:
    values = [
        ["deployment", f"{commit} 1 demo os/good 7.1"],
        ["root-used", "1000000"],
        ["root-free", "2000000"],
    ]
    workshop.shell.lines = [{"event": "result", "values": values}]
    outcome = update(workshop, old_disk, Overrides(keep=1))
    assert [deployment.commit for deployment in outcome.pruned] == [OLD]
    assert outcome.size == old_disk.stat().st_blocks * 512
    assert outcome.manifest.root is not None
    assert outcome.manifest.root.free == 2_000_000


@pytest.mark.parametrize("transport", ["delta", "http"])
def test_a_full_root_file_system_is_told_before_a_helper_starts(
    workshop: FakeWorkshop, old_disk: Path, transport: str
) -> None:
    workshop = replace(workshop, options=Options(transport=transport))
    manifest = load_manifest(old_disk)
    assert manifest is not None
    full = manifest.model_copy(update={"root": Room(size=2**30, free=2**24)})
    manifest_path(old_disk).write_text(full.model_dump_json())
    with pytest.raises(BadInput, match="has room for 0 B more"):
        update(workshop, old_disk, Overrides())
    assert workshop.machine.attached == []


def test_a_host_without_room_for_the_overlay_is_told(old_disk: Path, deadline: Deadline) -> None:
    manifest = load_manifest(old_disk)
    assert manifest is not None
    # Half of it would fit, but for a while the change is there twice.
    needed = shutil.disk_usage(old_disk.parent).free * 2 // 3
    with pytest.raises(BadInput, match=r"free; the updated disk needs"):
        check_rooms(old_disk, manifest.model_copy(update={"root": None}), needed, deadline)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_what_the_system_refuses_comes_with_the_state_of_the_disk(
    workshop: FakeWorkshop, old_disk: Path, number: int
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    workshop.shell.before = fail
    with pytest.raises(ComposerError) as caught:
        update(workshop, old_disk, Overrides())
    assert caught.value.disk == f"{old_disk} is as it was before"


def test_errors_tell_the_state_of_the_disk(workshop: FakeWorkshop, old_disk: Path) -> None:
    def fail() -> None:
        raise HelperDied("the VM ended")

    workshop.shell.before = fail
    with pytest.raises(HelperDied) as caught:
        update(workshop, old_disk, Overrides())
    assert caught.value.disk == f"{old_disk} is as it was before"


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (lambda disk: disk.write_bytes(b"other"), "was written to by another program meanwhile"),
        (lambda disk: disk.unlink(), "was taken away by another program meanwhile"),
    ],
)
def test_errors_tell_what_others_did_to_the_disk(
    workshop: FakeWorkshop, old_disk: Path, does: Callable[[Path], object], told: str
) -> None:
    def fail() -> None:
        does(old_disk)
        raise HelperDied("the VM ended")

    workshop.shell.before = fail
    with pytest.raises(HelperDied) as caught:
        update(workshop, old_disk, Overrides())
    assert caught.value.disk == f"{old_disk} {told}"


def test_an_error_after_the_switch_says_that_the_disk_is_the_new_one(
    old_disk: Path, manifest_of: Callable[..., Manifest]
) -> None:
    new = old_disk.with_name("new.qcow2")
    shutil.copy(old_disk, new)

    def switch() -> None:
        with told_of(old_disk):
            publish_disk(new, old_disk, manifest_of(new))
            raise HelperDied("too late")

    with pytest.raises(HelperDied) as caught:
        switch()
    assert caught.value.disk == f"{old_disk} is the new one"


def test_rollback(workshop: FakeWorkshop, old_disk: Path, commit: str) -> None:
    update(workshop, old_disk, Overrides())
    values = [["deployment", f"{OLD} 0 demo - -"], ["deployment", f"{commit} 1 demo os/good 7.1"]]
    values += [["root-used", "1000000"], ["root-free", "2000000"]]
    workshop.shell.lines = [{"event": "result", "values": values}]
    outcome = rollback(workshop, old_disk)
    assert outcome.manifest.commit == OLD
    assert [deed.what for deed in outcome.manifest.history] == ["update", "rollback"]
    assert outcome.pruned == ()
    # The next update brings it back to what the ref names.
    workshop.shell.lines = said(commit)
    assert update(workshop, old_disk, Overrides()).manifest.commit == commit


def test_rollback_wants_a_former_deployment(workshop: FakeWorkshop, old_disk: Path) -> None:
    with pytest.raises(BadInput, match="one deployment alone"):
        rollback(workshop, old_disk)
    assert workshop.machine.attached == []


def test_rollback_of_a_disk_that_was_booted(workshop: FakeWorkshop, old_disk: Path) -> None:
    """It may have upgraded itself: what is on it counts, not the manifest."""
    with old_disk.open("ab") as file:
        file.truncate(old_disk.stat().st_size + 2**16)
    other = "4" * 64
    values = [["deployment", f"{OLD} 0 demo - -"], ["deployment", f"{other} 0 demo - -"]]
    values += [["root-used", "1000000"], ["root-free", "2000000"]]
    workshop.shell.lines = [{"event": "result", "values": values}]
    outcome = rollback(workshop, old_disk)
    assert [deployment.commit for deployment in outcome.manifest.deployments] == [OLD, other]
    assert outcome.manifest.history[-1].commit == OLD


@pytest.mark.parametrize("values", [[], [["deployment", f"{'3' * 64} 0 demo - -"]]])
def test_a_guest_that_reports_something_else(
    workshop: FakeWorkshop, old_disk: Path, values: list[list[str]]
) -> None:
    workshop.shell.lines = [{"event": "result", "values": values}]
    with pytest.raises(ComposerError):
        update(workshop, old_disk, Overrides())


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (["snapshot", "-c", "mine"], "internal snapshots"),
        (["bitmap", "--add", "-f", "qcow2"], "persistent dirty bitmaps"),
    ],
)
def test_what_a_rewritten_disk_would_not_have_is_not_lost_silently(
    workshop: FakeWorkshop, old_disk: Path, made: list[str], named: str
) -> None:
    more = ["mine"] if made[0] == "bitmap" else []
    subprocess.run(["qemu-img", *made, old_disk, *more], check=True)
    with pytest.raises(BadInput, match=named):
        update(workshop, old_disk, Overrides())
    assert workshop.machine.attached == []


@pytest.mark.parametrize("is_large", [False, True])
def test_a_new_disk_is_compared_with_what_it_was_made_from(
    workshop: FakeWorkshop, old_disk: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """One that is large with --paranoid alone."""
    if is_large:
        monkeypatch.setattr("composer.compose.edit._COMPARED_BYTES", -1)
    flatten = image.flatten

    def wrong(overlay: Path, below: Sequence[Path], target: Path, deadline: Deadline) -> None:
        flatten(overlay, below, target, deadline)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", target], check=True)

    paranoid = replace(workshop, options=replace(workshop.options, paranoid=True))
    assert update(paranoid, old_disk, Overrides()).changed
    monkeypatch.setattr(image, "flatten", wrong)
    before = old_disk.read_bytes()
    with pytest.raises(ComposerError, match="does not hold what was written"):
        update(paranoid if is_large else workshop, old_disk, Overrides(compact=True))
    assert old_disk.read_bytes() == before
    if is_large:
        assert update(workshop, old_disk, Overrides(compact=True)).changed
