"""Where a test process works: its folders, the composer run in them, and what it leaves there."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer.compose import steps
from composer.compose.update import bootstrap_for, known_disk
from composer.compose.workshop import Options, Workshop
from composer.deadline import Deadline
from composer.events import Reporter, Tape
from composer.helper.bootstrap import BootstrapImage
from composer.helper.lease import Helper, HelperShape
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from composer.store.folders import Folders
from tests.signing import Gpg

REF = "debian/bookworm/amd64/demo"
# Its two commits without most drivers, documents and languages; bound to REF, so they may stand in for those.
LEAN_REF = "debian/bookworm/amd64/lean"
CLOUD_REF = "debian/bookworm/amd64/cloud"
# Far above what any of these takes under emulation; what hangs must end all the same.
TIMEOUT = 600
# What docs/safety.md promises.  Not at once: libvirt's threads write to the very end of a composer.
_LAST_RITES_SECONDS = 5


@dataclass(frozen=True)
class Ran:
    """A composer that ended."""

    code: int
    stdout: str
    stderr: str
    events: list[dict[str, Any]]

    def phases(self) -> dict[str, float]:
        return {e["name"]: e["data"]["seconds"] for e in self.events if e["kind"] == "phase-end"}


def ostree(repo: Path, *argv: str) -> str:
    done = subprocess.run(["ostree", f"--repo={repo}", *argv], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Place:
    """Folders of one test session, and the composer run in them."""

    folder: Path
    cache_in: Path | None = None
    runs_in: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        places = {"CACHE": self.cache, "RUNS": self.runs, "STATE": self.folder / "state"}
        return os.environ | {f"COMPOSER_{name}": str(path) for name, path in places.items()}

    @property
    def cache(self) -> Path:
        return self.cache_in or self.folder / "cache"

    @property
    def runs(self) -> Path:
        return self.runs_in or self.folder / "r"

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "composer", *(str(word) for word in words)]

    def composer(self, *words: str | Path, prefix: tuple[str, ...] = ()) -> Ran:
        events = self.folder / "events.jsonl"
        events.unlink(missing_ok=True)
        takes_events = words[0] in ("build", "update", "rollback", "verify") or "--deep" in words
        takes_events = takes_events and "--events" not in words
        more = ("--events", events) if takes_events else ()
        done = subprocess.run(
            [*prefix, *self.argv(*words, *more)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        lines = events.read_text().splitlines() if events.exists() else []
        return Ran(done.returncode, done.stdout, done.stderr, [json.loads(line) for line in lines])

    @contextmanager
    def started(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Run a composer in the background; it has ended when the block has."""
        with subprocess.Popen(
            self.argv(*words),
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def workshop(self, seconds: float = TIMEOUT) -> Workshop:
        options = Options(accelerator="tcg", timeout=seconds)
        folders = Folders.of(self.environment)
        return Workshop(folders, Reporter(Tape()), options, Deadline.after(seconds))

    @property
    def gpg(self) -> Gpg:
        """The key that the tests' commits are signed with."""
        return Gpg(self.folder / "gpg")

    def sign(self, repo: Path, commit: str) -> None:
        """Sign a commit as its maker would."""
        self.gpg.sign(repo, commit)

    def runs_left(self) -> list[str]:
        """The folders of jobs, and of libvirt's drivers in other processes than this one."""
        own = f"p{os.getpid()}-"
        return sorted(path.name for path in self.runs.iterdir() if not path.name.startswith(own))

    def assert_cleared(self, beside: Path | None = None) -> None:
        """Assert that soon after a composer's end, however it came, nothing that it used is left.

        ``beside`` is the folder of the disk that it worked on.
        """
        began = time.monotonic()

        def left() -> list[str]:
            names = [path.name for path in beside.iterdir()] if beside else []
            work = [name for name in names if ".work." in name or ".lock" in name]
            return [*map(str, self.qemu_pids()), *self.runs_left(), *work]

        while found := left():
            assert time.monotonic() - began < _LAST_RITES_SECONDS, f"still there: {found}"
            time.sleep(0.05)

    def qemu_pids(self) -> list[int]:
        """The VMs that run in this place, whoever started them."""
        marker = f"{self.runs}/".encode()
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"qemu-system" in words[0] and any(marker in word for word in words):
                    found.append(int(process.name))
        return found

    def wait_for_no_vm(self, seconds: float) -> float:
        """Wait until no VM is left; return how long that took."""
        began = time.monotonic()
        while self.qemu_pids():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"a VM is still there after {seconds} s")
            time.sleep(0.1)
        return time.monotonic() - began


_MOUNTS = ("mount", "umount2", "move_mount", "fsopen", "open_tree", "pivot_root", "mount_setattr")


@dataclass(frozen=True)
class Trace:
    """What strace sees of a composer and all that it starts: mounts, programs, and opened files.

    Without ``opens`` it takes a fraction of the time.
    """

    path: Path
    opens: bool = True

    @property
    def prefix(self) -> tuple[str, ...]:
        """What is put before the composer's own words."""
        calls = ",".join((*_MOUNTS, "execve", *(("openat",) if self.opens else ())))
        return (
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-s",
            "4096",
            "-o",
            str(self.path),
            "-e",
            f"trace={calls}",
        )

    def assert_unprivileged(self) -> None:
        """Assert that nothing was mounted, no loop device opened, and no setuid program run."""
        lines = self.path.read_text(errors="replace").splitlines()
        mounts = [line for line in lines if re.search(rf"\b({'|'.join(_MOUNTS)})\(", line)]
        assert mounts == []
        assert [line for line in lines if "/dev/loop" in line] == []
        # How it ended may stand in another line, after what other threads did meanwhile.
        tried = {Path(m[1]) for line in lines if (m := re.search(r'execve\("([^"]+)"', line))}
        programs = {path for path in tried if path.exists()}
        assert any("qemu-system" in path.name for path in programs), "it must have seen the VM start"
        modes = {path: path.stat().st_mode for path in programs}
        assert [path for path, mode in modes.items() if mode & (stat.S_ISUID | stat.S_ISGID)] == []


def timed(workshop: Workshop) -> Workshop:
    """Return a workshop for one trial of many, with a deadline of its own."""
    return replace(workshop, deadline=Deadline.after(TIMEOUT))


def image_of(workshop: Workshop, repo: Path, ref: str) -> BootstrapImage:
    """Return the bootstrap image of a ref of a repo."""
    with workshop.source(str(repo), repo.parent, Trust(), Tls()) as source:
        commit = source.resolve(ref)
        return workshop.bootstrap(workshop.fetch(source, ref, commit), commit, ())


@contextmanager
def helper_of(place: Place, disk: Path) -> Iterator[Helper]:
    """Yield a helper like those of a disk's jobs, a clone of the same template."""
    workshop = place.workshop()
    manifest = known_disk(disk)
    image = bootstrap_for(workshop, manifest, None, steps.INSPECT_STEPS)
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    with workshop.bench("test", image) as bench, workshop.helper(bench, shape) as helper:
        yield helper


PASSWORD = "tested-pw"
HASH = (  # openssl passwd -6
    "$6$tested$7xTXIzBocAKFOFC5U247prOWBtzGB251Yv1Qah4YouDgHZW9pBc8hkC1gRWfV/Wh0LkUemN88oJvE58BUsSBg0"
)
