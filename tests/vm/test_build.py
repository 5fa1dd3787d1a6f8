"""The build of the disk that all VM tests share: in one round trip, without privileges, and once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.vm.ground import Built, Repo
from tests.vm.place import Place


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_one_round_trip_does_the_job(built: Built) -> None:
    order = [event["name"] for event in built.ran.events if event["kind"] == "phase-end"]
    wanted = [
        "helper",
        "partition",
        "format-ext4",
        "init-sysroot",
        "pull",
        "deploy",
        "finalise",
        "publish",
    ]
    assert [name for name in order if name in wanted] == wanted


def test_nothing_is_mounted_on_the_host_no_loop_device_used_no_setuid_program_run(built: Built) -> None:
    """A build; test_flow.py looks at update and verify."""
    built.trace.assert_unprivileged()


def test_same_recipe_and_commit_again_is_a_no_op_without_a_vm(
    place: Place, repo: Repo, recipe: Path, built: Built
) -> None:
    repo.point(repo.first)
    before = digest(built.disk)
    again = place.composer("build", recipe)
    repo.point(repo.second)
    assert again.code == 0
    assert "nothing to do" in again.stdout
    assert "helper" not in again.phases()
    assert digest(built.disk) == before
