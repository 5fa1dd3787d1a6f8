"""How long a commit takes into a helper, by each transport and by how much of the tree changed.

A sample is the pull phase alone: from the mount of what the host offers to the last object written, in a
helper that is up.  What the host prepares for it (the delta disk) is measured apart, under `host/`.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from composer.compose import steps
from composer.compose.supply import obstacles, opened_supply
from composer.compose.target import SERIAL
from composer.compose.workshop import Workshop
from composer.disk import image
from composer.disk.layout import Layout
from composer.export import delta
from composer.export.choice import TRANSPORTS
from composer.export.delta import Wanted, delta_disk
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Backing, Disk
from composer.helper.job import Job, run_job
from composer.helper.lease import HelperShape
from composer.repo.checked import CheckedRepo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from composer.store.cache import Cache
from tests.bench.place import REF, REPO, Measured, demo_image, workshop

_SHAPE = HelperShape(2**30, 2)
_SIZE = 3 * 2**30
# Of the 9,000 files of the demo's tree.
_SHARES = {"change-0.1%": 0.001, "change-1%": 0.01, "change-10%": 0.1}
_STATIC = "static-delta"


@dataclass(frozen=True)
class Scene:
    """A repo of its own with commits that differ by so much from the first, and disks that have the first."""

    here: Workshop
    folder: Path
    repo: Path
    image: BootstrapImage
    first: str
    commits: dict[str, tuple[str, str]]
    """By label: the ref and the commit that it names."""

    def ostree(self, *argv: str) -> str:
        """Run an ostree command on the repo."""
        command = ["ostree", f"--repo={self.repo}", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def _scene(here: Workshop) -> Iterator[Scene]:
    _, second, image_ = demo_image(here)
    with tempfile.TemporaryDirectory(prefix="bench.", dir="/var/tmp") as name:
        folder = Path(name)
        subprocess.run(["cp", "-a", "--reflink=auto", REPO, folder / "repo"], check=True)
        bare = Scene(here, folder, folder / "repo", image_, "", {})
        first = bare.ostree("rev-parse", f"{REF}^")
        commits = {"update-45": (REF, second)}
        tree = folder / "tree"
        bare.ostree("checkout", "-U", "--force-copy", first, str(tree))
        for label, share in _SHARES.items():
            commits[label] = _changed(bare, tree, first, label, share)
        shutil.rmtree(tree)
        yield replace(bare, first=first, commits=commits)


def _changed(scene: Scene, tree: Path, first: str, label: str, share: float) -> tuple[str, str]:
    """Commit the first tree with a share of its files changed; return ref and commit."""
    files = sorted(path for path in (tree / "usr").rglob("*") if path.is_file() and not path.is_symlink())
    overlay = scene.folder / label
    # Chosen by a fixed seed: the same files in each run.
    for path in random.Random(label).sample(files, round(len(files) * share)):
        target = overlay / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        with target.open("ab") as file:
            file.write(b"changed\n")
    ref = f"bench/{label.rstrip('%')}"
    argv = ["commit", "-b", ref, f"--tree=ref={first}", f"--tree=dir={overlay}"]
    argv += ["--owner-uid=0", "--owner-gid=0", f"--parent={first}"]
    return ref, scene.ostree(*argv)


def _new_disk(scene: Scene, name: str) -> Disk:
    path = scene.folder / f"{name}.qcow2"
    path.unlink(missing_ok=True)
    image.create(path, _SIZE, scene.here.deadline)
    return Disk(path, "qcow2", SERIAL, "sdb")


def _overlay(scene: Scene, base: Path) -> Disk:
    path = scene.folder / "overlay.qcow2"
    path.unlink(missing_ok=True)
    image.create_overlay(path, base, scene.here.deadline)
    return Disk(path, "qcow2", SERIAL, "sdb", backing=Backing(base, "qcow2"))


def _pull(
    scene: Scene,
    transport: str,
    target: Disk,
    ref: str,
    wanted: Wanted,
    around: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[float, int]:
    """Pull a commit in a helper; return the seconds of the pull phase and the bytes moved."""
    here = replace(scene.here, options=replace(scene.here.options, transport=transport))
    layout = Layout.for_firmware("bios+uefi")
    numbers = {part.role: number for number, part in enumerate(layout.partitions, start=1)}
    data = {
        **steps.partition_data(numbers),
        "layout": layout.sfdisk_script().encode(),
        "ref": ref.encode(), "commit": wanted.commit.encode(), "stateroot": b"debian", "keep": b"2",
        "remote-name": b"origin", "remote-url": b"http://bench.example.org/",
    }  # fmt: skip
    with ExitStack() as stack:
        source = stack.enter_context(here.source(str(scene.repo), scene.folder, Trust(), Tls()))
        repo = here.fetch(source, ref, wanted.commit)
        supply = stack.enter_context(opened_supply(here, source, repo, wanted, scene.image, scene.folder))
        bench = stack.enter_context(here.bench("bench", scene.image))
        shape = replace(_SHAPE, share=supply.share)
        helper = stack.enter_context(here.helper(bench, shape, warming=True))
        helper.machine.attach(target)
        with supply.reaching(helper, here) as where:
            job = Job((*around[0], *supply.steps, *around[1], "finalise"), data | where)
            result = run_job(helper.shell, job, here.reporter, here.deadline)
        helper.machine.detach(target, here.deadline)
        return sum(result.seconds[step] for step in supply.steps), supply.moved.bytes


def _static_delta(scene: Scene, base: Path, commit: str) -> tuple[float, float, int]:
    """Bring a commit over as ostree's own static delta; return seconds here, seconds there, and its size."""
    place = scene.folder / "static"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    began = time.monotonic()
    argv = ["static-delta", "generate", "--inline", "--min-fallback-size=0", f"--from={scene.first}"]
    scene.ostree(*argv, f"--to={commit}", f"--filename={place}/delta")
    packed = scene.folder / "static.ext4"
    packed.unlink(missing_ok=True)
    delta.pack(place, packed, scene.here.deadline)
    here_seconds = time.monotonic() - began
    target = _overlay(scene, base)
    script = (
        "set -e; mkdir -p /s /d; mount /dev/sdb3 /s; mount -o ro,noload /dev/sdc /d; read a _ </proc/uptime; "
        "ostree --repo=/s/ostree/repo static-delta apply-offline /d/delta; read b _ </proc/uptime; echo $a $b"
    )
    with scene.here.bench("bench", scene.image) as bench, scene.here.helper(bench, _SHAPE) as helper:
        helper.machine.attach(target)
        helper.machine.attach(Disk(packed, "raw", "static", "sdc", readonly=True))
        wait = "for i in $(seq 100); do [ -b /dev/sdb3 ] && [ -b /dev/sdc ] && break; usleep 50000; done; "
        answer = helper.shell.run(["sh", "-c", wait + script], deadline=scene.here.deadline)
        assert answer.code == 0, answer.stderr
        began_there, ended_there = (float(word) for word in answer.stdout.split()[-2:])
    return here_seconds, ended_there - began_there, (place / "delta").stat().st_size


def _delta_made(scene: Scene, wanted: Wanted) -> float:
    """Return the seconds that a delta disk takes to make."""
    cache = scene.here.folders.cache
    repo = CheckedRepo(cache / "repo").of("")
    with tempfile.TemporaryDirectory(prefix=".bench.", dir=cache) as folder:
        began = time.monotonic()
        delta_disk(Cache(Path(folder), delta.KIND), repo, wanted, scene.here.deadline)
        return time.monotonic() - began


def transports(rounds: int) -> Measured:
    """The pull phase by every transport that works here, alternating; a full create and updates."""
    samples: dict[str, list[float]] = {}
    figures: dict[str, float] = {}

    def note(label: str, seconds: float) -> None:
        samples.setdefault(label, []).append(seconds)

    here = workshop()
    with _scene(here) as scene:
        with here.source(str(scene.repo), scene.folder, Trust(), Tls()) as source:
            hindered = obstacles(source, scene.image, here.options.connect)
        ways = [way for way in TRANSPORTS if way not in hindered]
        base = _new_disk(scene, "base")
        make = ("partition", "format-ext4", "init-sysroot")
        first = Wanted(scene.first)
        _pull(scene, "delta", base, REF, first, (make, ("deploy",)))
        for _ in range(rounds):
            for way in ways:
                target = _new_disk(scene, "create")
                seconds, moved = _pull(scene, way, target, REF, first, (make, ()))
                note(f"create/{way}", seconds)
                figures[f"bytes create/{way}"] = moved
        have = frozenset({scene.first})
        for _ in range(rounds):
            for label, (ref, commit) in scene.commits.items():
                for way in ways:
                    target = _overlay(scene, base.path)
                    around = (("mount-sysroot",), ())
                    seconds, moved = _pull(scene, way, target, ref, Wanted(commit, have, scene.first), around)
                    note(f"{label}/{way}", seconds)
                    figures[f"bytes {label}/{way}"] = moved
        for label, (_, commit) in scene.commits.items():
            made, applied, size = _static_delta(scene, base.path, commit)
            note(f"host {label}/{_STATIC}", made)
            note(f"{label}/{_STATIC}", applied)
            figures[f"bytes {label}/{_STATIC}"] = size
        for label, wanted in (
            ("create", first),
            *((label, Wanted(commit, have, scene.first)) for label, (_, commit) in scene.commits.items()),
        ):
            note(f"host {label}/delta", _delta_made(scene, wanted))
    middle = {label: sorted(taken)[len(taken) // 2] for label, taken in samples.items()}
    ratios = {
        "create/http : create/delta": round(middle["create/http"] / middle["create/delta"], 2),
        "update-45/http : update-45/delta": round(middle["update-45/http"] / middle["update-45/delta"], 2),
    }
    return Measured(samples, ratios, figures)
