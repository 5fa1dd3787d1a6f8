"""What is installed: all that the checkout's composer/, bootstrap/ and recipes/ hold, modes included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PARTS = {"composer": "composer", "bootstrap": "composer/bootstrap", "recipes": "composer/recipes"}


def shipped() -> dict[str, Path]:
    """Return the files that must be installed: where they go, and where they stand in the checkout."""
    said = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PARTS],
        cwd=CHECKOUT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    names = [name for name in said.stdout.split("\0") if name and (CHECKOUT / name).exists()]
    return {f"{PARTS[name.partition('/')[0]]}/{name.partition('/')[2]}": CHECKOUT / name for name in names}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build, from a copy, the tree that a wheel packs.

    The build of setuptools and not a wheel, as making one takes a package more, and only zips this.
    """
    if not (CHECKOUT / ".git").exists():
        pytest.skip("git knows what ships")
    copy = tmp_path_factory.mktemp("wheel") / "source"
    for name in ("pyproject.toml", "README.md"):
        copy.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, copy / name)
    for file in shipped().values():
        target = copy / file.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    argv = [
        sys.executable,
        "-c",
        "import setuptools; setuptools.setup()",
        "--quiet",
        "build",
        "--build-lib",
        "lib",
    ]
    done = subprocess.run(argv, cwd=copy, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy / "lib"


def installed(built: Path) -> set[str]:
    return {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}


def test_nothing_is_left_out(built: Path) -> None:
    assert set(shipped()) - installed(built) == set()


def test_nothing_else_is_in_it(built: Path) -> None:
    assert installed(built) - set(shipped()) == set()


def test_programs_stay_programs(built: Path) -> None:
    programs = {name for name, path in shipped().items() if os.access(path, os.X_OK)}
    assert "composer/recipes/debian-bookworm/make-tree" in programs
    assert {name for name in programs if not os.access(built / name, os.X_OK)} == set()


def test_content_is_the_checkouts(built: Path) -> None:
    assert {
        name for name, path in shipped().items() if (built / name).read_bytes() != path.read_bytes()
    } == set()


def test_installed_files_are_found(built: Path) -> None:
    """From another folder, with the built tree alone on the path."""
    code = (
        "import composer; from composer.resources import bootstrap_file, recipes_folder;"
        "print(composer.__file__); print(bootstrap_file('guest/dispatch').is_file());"
        "print((recipes_folder() / 'debian-bookworm.toml').is_file())"
    )
    # -P and -S: neither this folder nor the checkout that is installed for editing.
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code], cwd=built.parent, env={"PYTHONPATH": str(built)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(built / "composer/__init__.py"), "True", "True"]
