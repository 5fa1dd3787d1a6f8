"""Fixtures of the VM tests: a repo and folders of their own, and one disk built for all.

They run real helpers on real Debian content, so the repo is made beforehand (scripts/vm-tests) and named
by COMPOSER_TEST_REPO.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.place import RECIPE, REF, Built, Place, Repo, ostree


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A short path, for unix sockets."""
    folder = Path(f"/var/tmp/ct{os.getpid()}")
    folder.mkdir(mode=0o700)
    place = Place(folder)
    yield place
    assert place.qemu_pids() == []
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def repo(place: Place) -> Repo:
    named = os.environ.get("COMPOSER_TEST_REPO")
    assert named, "COMPOSER_TEST_REPO names the repo; scripts/vm-tests makes it"
    path = place.folder / "repo"
    subprocess.run(["cp", "-a", "--reflink=auto", named, path], check=True)
    second = ostree(path, "rev-parse", REF)
    return Repo(path, ostree(path, "rev-parse", f"{REF}^"), second)


@pytest.fixture(scope="session")
def recipe(place: Place) -> Path:
    path = place.folder / "test.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def built(place: Place, repo: Repo, recipe: Path) -> Built:
    repo.point(repo.first)
    ran = place.composer("build", recipe)
    assert ran.code == 0, ran.stderr
    repo.point(repo.second)
    return Built(place.folder / "test.qcow2", ran)


@pytest.fixture
def fresh(built: Built, tmp_path_factory: pytest.TempPathFactory, place: Place) -> Path:
    """A copy of the built disk with its manifest, for a test that changes it."""
    folder = Path(tmp_path_factory.mktemp("disk", numbered=True))
    disk = folder / "copy.qcow2"
    for suffix in ("", ".manifest.json"):
        # cp -a keeps the times by which the manifest knows its disk
        source = f"{built.disk}{suffix}"
        subprocess.run(["cp", "-a", "--reflink=auto", source, f"{disk}{suffix}"], check=True)
    return disk
