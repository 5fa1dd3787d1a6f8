"""What a build would lose is named before it happens, and a mere rebuild loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composer.compose.lost import lost_by_build
from composer.disk.manifest import Deployment, Manifest
from composer.plan import Plan, make_plan
from composer.recipe.load import load_recipe
from tests.unit.test_plan import tree

Make = Callable[..., Manifest]
NOTICED = "2026-01-02T03:04:05Z"
RECIPE = 'name = "demo"\n[ostree]\nrepo = "/repo"\nref = "os/good"\nstateroot = "demo"\n'


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "demo.toml"
    path.write_text(RECIPE)
    return make_plan(load_recipe(path, {}), "/repo", tree())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "demo.qcow2"
    path.write_bytes(b"x")
    return path


def deployment(refspec: str | None = "up:os/good", stateroot: str = "demo") -> Deployment:
    return Deployment(commit="3" * 64, serial=0, stateroot=stateroot, refspec=refspec, version=None)


@pytest.mark.parametrize("refspec", [None, "os/good", "up:os/good"])
def test_a_rebuild_loses_nothing(disk: Path, plan: Plan, manifest_of: Make, refspec: str | None) -> None:
    present = manifest_of(disk).model_copy(update={"deployments": (deployment(refspec),)})
    assert lost_by_build(disk, present, plan) == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"written": NOTICED}, NOTICED),
        ({"name": "other"}, "the product other; the recipe makes demo"),
        ({"deployments": (deployment(), deployment("up:os/else"))}, "333333333333 of the ref os/else"),
        ({"deployments": (deployment(), deployment("os/else"))}, "333333333333 of the ref os/else"),
        ({"deployments": (deployment(stateroot="mine"),)}, "333333333333 of the stateroot mine"),
    ],
)
def test_what_is_lost(disk: Path, plan: Plan, manifest_of: Make, changes: dict[str, Any], told: str) -> None:
    (lost,) = lost_by_build(disk, manifest_of(disk).model_copy(update=changes), plan)
    assert told in lost


def test_what_was_written_since_the_last_job(disk: Path, plan: Plan, manifest_of: Make) -> None:
    present = manifest_of(disk)
    disk.write_bytes(b"more")
    (lost,) = lost_by_build(disk, present, plan)
    assert "since the composer's last job" in lost


def test_a_file_without_a_manifest(disk: Path, plan: Plan) -> None:
    (lost,) = lost_by_build(disk, None, plan)
    assert "no manifest" in lost
