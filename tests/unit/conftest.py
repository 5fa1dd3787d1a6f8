"""What the unit tests share: a tiny OSTree repo, fake programs on PATH, golden files, the program itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from composer.cli import app
from composer.compose.workshop import Options, Workshop
from composer.deadline import Deadline
from composer.disk.manifest import Deployment, HelperSettings, Identity, Manifest, manifest_path
from composer.events import Reporter, Tape
from composer.store.folders import Folders

# The same examples on every machine.
hypothesis.settings.register_profile("unit", derandomize=True, deadline=None)
hypothesis.settings.load_profile("unit")

_MODULES = "usr/lib/modules"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Hold a text against tests/unit/golden/NAME."""

    def check(name: str, text: str) -> None:
        path = request.path.parent / "golden" / name
        if request.config.getoption("--renew-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"pytest --renew-golden writes {path} anew, if the change is meant"

    return check


@pytest.fixture
def deadline() -> Deadline:
    return Deadline.after(20)


@pytest.fixture(scope="session")
def host_deadline() -> Deadline:
    """Return a deadline for fixtures that outlive a test, and for hypothesis."""
    return Deadline.after(600)


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put an sh script onto PATH, in front of the real program of that name."""
    folder = tmp_path / "fake-bin"

    def make(name: str, script: str) -> Path:
        if not folder.exists():
            folder.mkdir()
            monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def _write(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"this is {path}\n")


def commit_tree(repo: Path, ref: str, tree: Path) -> str:
    """Commit a folder to a repo; return the commit."""
    done = subprocess.run(
        ["ostree", f"--repo={repo}", "commit", "-b", ref, f"--tree=dir={tree}", "--owner-uid=0",
         "--owner-gid=0", "--add-metadata-string=version=7.1", "--fsync=false"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(scope="session")
def tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive repo with a bootable tree, os/good, and some that cannot boot."""
    home = tmp_path_factory.mktemp("tiny")
    repo = home / "repo"
    subprocess.run(["ostree", f"--repo={repo}", "init", "--mode=archive"], check=True)
    good = home / "good"
    _write(good, f"{_MODULES}/6.1/vmlinuz", f"{_MODULES}/6.1/initramfs.img", "usr/bin/sh", "usr/sbin/sshd")
    _write(good, "usr/share/a\nb", "usr/share/Grüße", "usr/share/a -> b", 'usr/share/"quoted"')
    (good / "usr/bin/dash").symlink_to("sh")
    (good / "usr/bin/sh").chmod(0o4755)
    commit_tree(repo, "os/good", good)
    for ref, paths in {
        "os/no-kernel": ["usr/bin/sh"],
        "os/two-kernels": [
            f"{_MODULES}/{v}/{f}" for v in ("5.0", "6.1") for f in ("vmlinuz", "initramfs.img")
        ],
        "os/no-initramfs": [f"{_MODULES}/6.1/vmlinuz"],
    }.items():
        tree = home / Path(ref).name
        _write(tree, *paths)
        commit_tree(repo, ref, tree)
    return repo


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the composer keep its things in folders of this test; yield that of the running jobs."""
    # Not below tmp_path: paths of sockets are short.
    runs = Path(tempfile.mkdtemp(prefix="cr", dir="/tmp"))
    monkeypatch.setenv("COMPOSER_RUNS", str(runs))
    monkeypatch.setenv("COMPOSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPOSER_STATE", str(tmp_path / "state"))
    yield runs
    shutil.rmtree(runs)


@pytest.fixture
def tape() -> Tape:
    """Make a monitor that keeps what it is told."""
    return Tape()


@pytest.fixture
def workshop(places: Path, tape: Tape, deadline: Deadline) -> Workshop:
    """Make a workshop that keeps its things there and tells the tape."""
    return Workshop(Folders.of(os.environ), Reporter(tape), Options(), deadline)


@pytest.fixture
def composer(
    places: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run the program in this process, as its entry point would."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        words = ["composer", *map(str, argv)]
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return subprocess.CompletedProcess(words, code if isinstance(code, int) else 0, out, err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def manifest_of() -> Callable[..., Manifest]:
    """Make the manifest of a file."""

    def make(disk: Path, commit: str = "1" * 64, repo: str = "/nowhere") -> Manifest:
        return Manifest(
            name="demo",
            recipe="/recipes/demo.toml",
            plan="2" * 64,
            repo=repo,
            ref="os/good",
            stateroot="demo",
            remote=None,
            keep=2,
            firmware="bios+uefi",
            partitions={"bios": 1, "esp": 2, "root": 3},
            helper=HelperSettings(ref="os/good", commit=commit, memory=2**30, cpus=2),
            deployments=(Deployment(commit=commit, serial=0, stateroot="demo", refspec=None, version="7.1"),),
            disk=Identity.of(disk),
        )

    return make


@pytest.fixture
def good_disk(tmp_path: Path, manifest_of: Callable[..., Manifest], tiny_repo: Path) -> Path:
    """Make an empty qcow2 disk with a manifest that says it has os/good of the tiny repo."""
    disk = tmp_path / "good.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
    commit = (tiny_repo / "refs/heads/os/good").read_text().strip()
    manifest_path(disk).write_text(manifest_of(disk, commit, str(tiny_repo)).model_dump_json())
    return disk
