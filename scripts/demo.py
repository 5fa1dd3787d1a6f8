"""`make demo`: from Debian packages to a bootable OSTree disk and its update, each step timed.

Everything lies under demo/.  Run again, it reuses all that has not changed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TOP = Path(__file__).resolve().parent.parent
DEMO = TOP / "demo"
REPO = DEMO / "repo"
DISK = DEMO / "debian-bookworm.qcow2"
RESULTS = DEMO / "results.json"
RECIPE = TOP / "recipes" / "debian-bookworm.toml"
MAKE_TREE = TOP / "recipes" / "debian-bookworm" / "make-tree"
REF = "debian/bookworm/amd64/demo"


@dataclass
class Step:
    """One step of the demo: its seconds in all and by phase, and what it said at its end."""

    name: str
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def changed(self) -> bool:
        """Whether the step changed the disk."""
        return bool(self.result.get("changed"))


def run(*argv: str | Path) -> float:
    """Run a program to its end and return its seconds; where it fails, so does the demo."""
    began = time.monotonic()
    done = subprocess.run([str(word) for word in argv], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return time.monotonic() - began


def heading(text: str) -> None:
    """Print what comes next."""
    print(f"\n== {text}", flush=True)


def make_tree(what: str, title: str) -> Step:
    """Make a commit of the demo's tree, unless it is there."""
    heading(title)
    return Step(f"tree {what}", run(MAKE_TREE, what, REPO))


def composer(venv: Path, title: str, name: str, *argv: str | Path) -> Step:
    """Run a verb of the composer and return what its events tell."""
    heading(title)
    events = DEMO / f"events-{name.replace(' ', '-')}.jsonl"
    # A checkout that root works in may be another user's.
    trusted = ["--trust-folder"] if os.geteuid() == 0 else []
    seconds = run(venv / "bin" / "composer", *argv, *trusted, "--events", events)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    phases = {event["name"]: event["data"]["seconds"] for event in told if event["kind"] == "phase-end"}
    results = [event["data"] for event in told if event["kind"] == "result"]
    return Step(name, seconds, phases, results[-1] if results else {})


def identity() -> list[int]:
    """Return what tells whether the disk was written to."""
    status = DISK.stat()
    return [status.st_size, status.st_mtime_ns]


def verify(venv: Path, firmware: str, verified: dict[str, Any], *, changed: bool) -> Step:
    """Boot the disk, unless it was booted by an earlier run and nothing changed since then."""
    name = f"verify {firmware}"
    before = verified.get(firmware)
    if before is not None and not changed:
        heading(f"verified under {firmware} already, and nothing was done to the disk in this run")
        return Step(name, 0.0, skipped="unchanged")
    verified[firmware] = identity()
    title = f"boot the disk under {firmware} and prove what it runs"
    return composer(venv, title, name, "verify", DISK, "--firmware", firmware)


def build(venv: Path) -> Step:
    """Build the disk, unless there is one that waits for its update."""
    if DISK.exists() and REPO.exists():
        manifest = json.loads(Path(f"{DISK}.manifest.json").read_text())
        if manifest["deployments"][0]["commit"] == parent_of_ref():
            heading("the disk is there, at the commit before tonight's")
            return Step("build", 0.0, skipped="unchanged")
    return composer(venv, "a disk of it, made in a helper VM", "build", "build", RECIPE)


def parent_of_ref() -> str:
    """Return the commit before the ref's, empty where there is none."""
    argv = ["ostree", f"--repo={REPO}", "rev-parse", f"{REF}^"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def start_over_if_disk_is_gone() -> None:
    """Put the ref back to the first commit, so that there is something to update to again."""
    if DISK.exists() or not (REPO / "refs" / "heads" / REF).exists():
        return
    if parent := parent_of_ref():
        run("ostree", f"--repo={REPO}", "refs", "--force", f"--create={REF}", parent)


def show(steps: list[Step], total: float) -> None:
    """Print the table: phases, bytes, sizes, and how to boot the disk by hand."""
    table = Table(title="make demo", box=None, title_justify="left", pad_edge=False)
    table.add_column("step")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for step in steps:
        table.add_row(step.name, step.skipped, f"{step.seconds:.1f}")
        for phase, seconds in step.phases.items():
            table.add_row("", phase, f"{seconds:.1f}")
    table.add_row("all", "", f"{total:.1f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(table)
    for step in steps:
        if "bytes" in step.result:
            moved = f"{step.result['bytes'] / 2**20:.1f} MiB in {step.result['objects']} objects"
            console.print(f"{step.name}: {moved} moved into the helper")
    status = DISK.stat()
    disk = DISK.relative_to(TOP)
    console.print(f"disk: {disk}, {status.st_blocks * 512 / 2**20:.0f} MiB on this host")
    console.print("boot it by hand (the account is admin, the password demo; Ctrl-A X ends it):")
    console.print(
        "  qemu-system-x86_64 -machine q35 -m 1G -nographic -snapshot "
        f"-drive file={disk},format=qcow2,if=virtio"
    )
    console.print("under UEFI:  the same with  -bios /usr/share/ovmf/OVMF.fd")


def main() -> None:
    """Run the demo."""
    venv = Path(sys.argv[1]).absolute()
    DEMO.mkdir(exist_ok=True)
    start_over_if_disk_is_gone()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() and DISK.exists() else {}
    verified = dict(known.get("verified", {}))
    began = time.monotonic()
    steps = [make_tree("base", "a Debian tree, as an OSTree commit")]
    built = build(venv)
    steps += [built, verify(venv, "bios", verified, changed=built.changed)]
    steps += [make_tree("nightly", "tonight's commit: some 45 files differ")]
    updated = composer(venv, "the disk brought to tonight's commit", "update", "update", DISK)
    steps += [updated, verify(venv, "uefi", verified, changed=updated.changed)]
    total = time.monotonic() - began
    show(steps, total)
    results = {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(total, 1),
        "steps": [step.__dict__ for step in steps],
        "disk": identity(),
        "disk_bytes": DISK.stat().st_blocks * 512,
        "verified": verified,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
