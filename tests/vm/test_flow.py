"""The main job: a disk is updated, booted, rolled back and pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from composer.compose.update import known_disk
from tests.faults.experiment import Length
from tests.vm.ground import Repo
from tests.vm.place import REF, Place, Ran, Trace


def test_a_disk_is_updated_booted_rolled_back_and_pruned(
    place: Place, repo: Repo, fresh: Path, tmp_path: Path
) -> None:
    trace = Trace(tmp_path / "trace")
    assert_updated(place, repo, fresh, trace)
    assert_no_op(place, fresh)

    verified = place.composer("verify", fresh, "--firmware", "uefi", prefix=trace.prefix)
    trace.assert_unprivileged()
    assert_verified(verified, repo.second)

    fresh.touch()  # as a boot of it does: the composer cannot know what is on it then
    back = place.composer("rollback", fresh)
    assert back.code == 0, back.stderr
    assert repo.first[:12] in back.stdout
    assert_verified(place.composer("verify", fresh), repo.first)
    said = deep(place, fresh)
    assert [found["commit"] for found in said["deployments"]] == [repo.first, repo.second]
    assert all("console=ttyS0,115200" in line and "composer.rollback" not in line for line in said["kargs"])

    # Nothing is pulled again; what nothing needs is removed, and its blocks are given back to the host.
    compact = place.composer("update", fresh, "--compact", "--keep", "1")
    assert compact.code == 0, compact.stderr
    assert f"{repo.first[:12]} pruned" in compact.stdout
    assert "shrank" in compact.stdout


def assert_updated(place: Place, repo: Repo, disk: Path, trace: Trace) -> None:
    """Update a disk to the second commit: little is moved, the product's origin and arguments stay."""
    updated = place.composer("update", disk, prefix=trace.prefix)
    assert updated.code == 0, updated.stderr
    trace.assert_unprivileged()
    moved = next(event["data"] for event in updated.events if event["kind"] == "result")
    assert moved["changed"]
    assert 0 < moved["bytes"] < 20 * 2**20
    said = deep(place, disk)
    assert [item["commit"] for item in said["deployments"]] == [repo.second, repo.first]
    assert said["deployments"][0]["refspec"] == f"origin:{REF}"
    assert said["remotes"] == ["origin https://ostree.example.org/debian"]
    assert all("console=tty0 console=ttyS0,115200" in kargs for kargs in said["kargs"])
    manifest = known_disk(disk)
    assert manifest.commit == repo.second
    assert [deed.what for deed in manifest.history] == ["build", "update"]


def assert_no_op(place: Place, disk: Path) -> None:
    again = place.composer("update", disk)
    assert again.code == 0
    assert "nothing to do" in again.stdout
    assert "helper" not in again.phases()


def assert_verified(verified: Ran, commit: str, boots: int = 1) -> None:
    assert verified.code == 0, verified.stderr
    said = f"runs {commit[:12]}, multi-user.target reached, no failed unit"
    assert verified.stdout.count(said) == boots


def deep(place: Place, disk: Path) -> Any:
    """Return what a helper finds on a disk."""
    return json.loads(place.composer("inspect", disk, "--deep", "--json").stdout)["deep"]


def test_an_updated_disk_boots_under_each_firmware_of_one_call(
    place: Place, repo: Repo, fresh: Path, length: Length
) -> None:
    if length == "check":
        pytest.skip("two more boots: make soak-short")
    updated = place.composer("update", fresh)
    assert updated.code == 0, updated.stderr
    assert_verified(place.composer("verify", fresh, "--firmware", "all"), repo.second, boots=2)
