"""Fixtures of the VM tests: what they share, and a disk of their own.

They run real helpers on real Debian content, so the repo is made beforehand (scripts/test-repo) and named by
COMPOSER_TEST_REPO.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.ground import Built, Ground, Repo
from tests.vm.place import Place


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
def fresh(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built disk with its manifest, for a test that changes it."""
    return built.copied(Path(tmp_path_factory.mktemp("disk", numbered=True)) / "copy.qcow2")
