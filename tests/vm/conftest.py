"""Fixtures of the VM tests: a repo and folders of their own, and one disk built for all.

They run real helpers on real Debian content, so the repo is made beforehand (scripts/vm-tests) and named
by COMPOSER_TEST_REPO.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults.ground import Ground
from tests.vm.place import Built, Place, Repo


@pytest.fixture(scope="session")
def place(ground: Ground) -> Place:
    return ground.place


@pytest.fixture(scope="session")
def repo(ground: Ground) -> Repo:
    return ground.repo


@pytest.fixture(scope="session")
def recipe(ground: Ground) -> Path:
    return ground.recipe


@pytest.fixture(scope="session")
def built(ground: Ground) -> Built:
    return ground.built


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
