"""Disks that are written while the host's disk fails: what is not whole is never taken for whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from composer.deadline import Deadline
from composer.disk import image
from composer.errors import ComposerError
from tests.faults.experiment import Experiment, Trial
from tests.vm.ground import Ground

_MIB = 2**20
_SIZE = 64 * _MIB
# What QEMU's qcow2 driver does to a file (qapi/block-core.json, BlkdebugEvent), as far as a new disk sees it.
_EVENTS = (
    "l1_update", "l2_load", "l2_update", "l2_alloc_cow_read", "l2_alloc_write", "l1_grow_alloc_table",
    "l1_grow_write_table", "l1_grow_activate_table", "read_aio", "write_aio", "refblock_load",
    "refblock_update", "refblock_update_part", "refblock_alloc", "refblock_alloc_hookup",
    "refblock_alloc_write", "refblock_alloc_write_blocks", "refblock_alloc_write_table",
    "refblock_alloc_switch_table", "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os",
    "flush_to_disk", "pwritev", "pwritev_zero", "pwritev_done", "pwritev_rmw_head", "pwritev_rmw_tail",
    "empty_image_prepare", "cluster_alloc_space", "none",
)  # fmt: skip
_EIO, _ENOSPC = 5, 28

# Stands in qemu-img's place: puts blkdebug below the image that is written, and goes on as qemu-img.
_WRAPPER = """#!@PYTHON@
import json, os, subprocess, sys
rules, target = os.environ["COMPOSER_TEST_RULES"], os.environ["COMPOSER_TEST_TARGET"]
def failing(node):
    if isinstance(node, dict):
        if node.get("driver") == "file" and node["filename"] == target:
            return {"driver": "blkdebug", "config": rules, "image": node}
        return {key: failing(value) for key, value in node.items()}
    return node
words = list(sys.argv[1:])
if words[0] == "commit":
    # QEMU 7.2 takes a backing file that is no plain file for a second one, beside that of the header.
    top = json.loads(words[-1].removeprefix("json:"))["file"]["filename"]
    subprocess.run(["@QEMU_IMG@", "rebase", "-u", "-f", "qcow2", "-b", "", top], check=True)
if words[0] in ("convert", "commit"):
    words[-1] = "json:" + json.dumps(failing(json.loads(words[-1].removeprefix("json:"))))
os.execv("@QEMU_IMG@", ["qemu-img", *words])
"""


def written(path: Path, base: Path | None, chance: random.Random) -> Path:
    """Make a qcow2 image with random clusters at random places; some are zeroed or only partly written."""
    backed = ["-F", "qcow2", "-b", str(base)] if base else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backed, path, str(_SIZE)], check=True)
    commands = []
    for _ in range(chance.randrange(20, 120)):
        length = chance.choice((512, 4096, 65536, _MIB))
        offset = chance.randrange((_SIZE - length) // 512) * 512
        commands.append(f"write -q -P {chance.randrange(1, 256)} {offset} {length}")
        if chance.random() < 0.1:
            commands.append(f"write -q -z {offset} {length}")
    subprocess.run(["qemu-io", "-f", "qcow2", path], input="\n".join(commands), text=True, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return path


def rules(chance: random.Random) -> str:
    """Return rules of blkdebug: from the nth event of a kind on, or only then, it ends with an error."""
    event, after = chance.choice(_EVENTS), chance.choice((0, 0, 1, 1, 2, 3, 7))
    said = "".join(
        f'[set-state]\nevent = "{event}"\nstate = "{number}"\nnew_state = "{number + 1}"\n'
        for number in range(1, after + 1)
    )
    values = {"event": event, "state": after + 1, "errno": chance.choice((_EIO, _ENOSPC)),
              "once": chance.choice(("on", "off"))}  # fmt: skip
    return f"{said}[inject-error]\n" + "".join(f'{key} = "{value}"\n' for key, value in values.items())


def same(one: Path, other: Path) -> bool:
    """Whether two images show the same, by the real qemu-img, which follows what their headers name."""
    argv = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", str(one), str(other)]
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL).returncode == 0


def renamed(overlay: Path, below: Path) -> None:
    """Let an overlay name its backing file again, which the wrapper took from it."""
    argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(below), str(overlay)]
    subprocess.run(argv, check=True)


@contextmanager
def failing_qemu_img(folder: Path, target: Path) -> Iterator[Path]:
    """Have qemu-img fail by the rules that lie in the file which is yielded, where it writes ``target``."""
    binaries, path = folder / "bin", folder / "rules"
    binaries.mkdir(exist_ok=True)
    real = shutil.which("qemu-img")
    assert real
    wrapper = _WRAPPER.replace("@PYTHON@", shutil.which("python3") or "").replace("@QEMU_IMG@", real)
    (binaries / "qemu-img").write_text(wrapper)
    (binaries / "qemu-img").chmod(0o755)
    former = {name: os.environ.get(name) for name in ("PATH", "COMPOSER_TEST_RULES", "COMPOSER_TEST_TARGET")}
    os.environ |= {"PATH": f"{binaries}:{former['PATH']}", "COMPOSER_TEST_RULES": str(path),
                   "COMPOSER_TEST_TARGET": str(target)}  # fmt: skip
    try:
        yield path
    finally:
        for name, value in former.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def rewritten(overlay: Path, below: Sequence[Path], target: Path, *, merges: bool) -> bool:
    """Write a new disk as an update does; return whether that counts as done."""
    deadline = Deadline.after(120)
    try:
        if merges:
            image.merge(overlay, below[0], below[1:], target, deadline)
        else:
            image.flatten(overlay, below, target, deadline)
        image.check(target, "the new disk", deadline)
    except (ComposerError, OSError):
        return False
    return True


@contextmanager
def flatten_errors(ground: Ground) -> Iterator[Trial]:
    """An error of the disk at each thing that QEMU does to a new one: told, or the new one is whole."""
    folder = ground.place.folder / "images"
    folder.mkdir()
    target = folder / "new.qcow2"

    def trial(chance: random.Random) -> None:
        for file in folder.glob("*.qcow2"):
            file.unlink()
        base = written(folder / "base.qcow2", None, chance)
        disk = written(folder / "disk.qcow2", base, chance)
        overlay = written(folder / "overlay.qcow2", disk, chance)
        merges = chance.random() < 0.3
        with failing_qemu_img(folder, target) as path:
            path.write_text(rules(chance))
            done = rewritten(overlay, [disk, base], target, merges=merges)
        renamed(overlay, disk)
        if done:
            assert same(overlay, target), path.read_text()
            image.compare(overlay, [disk, base], target, [base] if merges else [], Deadline.after(60))
        # Without errors it is done, so what failed did so by the rules.
        target.unlink(missing_ok=True)
        assert rewritten(overlay, [disk, base], target, merges=merges)
        assert same(overlay, target)

    chance = random.Random("control")
    disk = written(folder / "disk.qcow2", None, chance)
    overlay = written(folder / "overlay.qcow2", disk, chance)
    with failing_qemu_img(folder, target) as path:
        for merges in (False, True):
            below = [disk, written(folder / "base.qcow2", None, chance)] if merges else [disk]
            for rule, succeeds in (("", True), ('[inject-error]\nevent = "write_aio"\nerrno = "5"\n', False)):
                path.write_text(rule)
                target.unlink(missing_ok=True)
                assert rewritten(overlay, below, target, merges=merges) == succeeds, (
                    "the rules must be followed"
                )
    yield trial
    shutil.rmtree(folder)


EXPERIMENTS = (Experiment("flatten-errors", 20, 50, 200, flatten_errors),)
