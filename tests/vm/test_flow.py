"""The main job: a disk is built, updated and verified, and holds just what its commit holds."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from composer.compose import steps
from composer.compose.target import new_target, overlay_target
from composer.compose.update import bootstrap_for, known_disk
from composer.helper.job import Job, run_job
from composer.helper.lease import HelperShape
from tests.vm.place import REF, Built, Place, Repo, Trace, ostree


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """A build; the test of update and verify looks at those."""
    built.trace.assert_unprivileged()


def test_update_moves_little_and_verifies_under_both_firmwares(
    place: Place, repo: Repo, built: Built, fresh: Path, tmp_path: Path
) -> None:
    before = digest(built.disk)
    trace = Trace(tmp_path / "update.trace")
    updated = place.composer("update", fresh, prefix=trace.prefix)
    assert updated.code == 0, updated.stderr
    trace.assert_unprivileged()
    moved = next(event["data"] for event in updated.events if event["kind"] == "result")
    assert moved["changed"]
    assert 0 < moved["bytes"] < 20 * 2**20
    said = json.loads(place.composer("inspect", fresh, "--deep", "--json").stdout)
    assert [item["commit"] for item in said["deep"]["deployments"]] == [repo.second, repo.first]
    assert said["deep"]["deployments"][0]["refspec"] == f"origin:{REF}"
    assert said["deep"]["remotes"] == ["origin https://ostree.example.org/debian"]
    assert all("console=tty0 console=ttyS0,115200" in kargs for kargs in said["deep"]["kargs"])
    assert said["commit"] == repo.second
    assert [deed["what"] for deed in said["history"]] == ["build", "update"]

    again = place.composer("update", fresh)
    assert again.code == 0
    assert "nothing to do" in again.stdout
    assert "helper" not in again.phases()

    trace = Trace(tmp_path / "verify.trace")
    verified = place.composer("verify", fresh, "--firmware", "all", prefix=trace.prefix)
    assert verified.code == 0, verified.stderr
    trace.assert_unprivileged()
    assert verified.stdout.count(f"runs {repo.second[:12]}, multi-user.target reached, no failed unit") == 2
    assert digest(built.disk) == before, "the disk that this one was copied from must not change"


def test_verify_fails_where_the_manifest_claims_another_commit(place: Place, repo: Repo, fresh: Path) -> None:
    manifest = Path(f"{fresh}.manifest.json")
    manifest.write_text(manifest.read_text().replace(repo.first, repo.second))
    verified = place.composer("verify", fresh)
    assert verified.code == 1
    assert repo.first[:12] in verified.stderr
    assert repo.second[:12] in verified.stderr
    assert "Traceback" not in verified.stderr


def test_product_equals_its_commit(place: Place, repo: Repo, built: Built, tmp_path: Path) -> None:
    """Contents, owners, modes, setuid bits and capabilities, by OSTree's own hashes of the trees.

    A commit made anew of the deployment's /usr has the same tree hash if, and only if, all of these are
    the same.  /etc is compared without what the recipe changed.
    """
    workshop = place.workshop()
    manifest = known_disk(built.disk)
    target = overlay_target(tmp_path / "overlay.qcow2", built.disk, workshop.deadline)
    bootstrap = bootstrap_for(workshop, manifest, None, steps.INSPECT_STEPS)
    shape = HelperShape(manifest.helper.memory, manifest.helper.cpus)
    script = """
        set -eu
        cd /run/composer/sysroot
        root=$(echo ostree/deploy/debian/deploy/*.0)
        ostree --repo=ostree/repo commit --tree=dir="$root/usr" --branch=usr-again --orphan >/run/commit
        ostree --repo=ostree/repo ls -d -C "$(cat /run/commit)" /
        stat -c '%a %u %g %n' "$root/usr/bin/sudo" "$root/etc/shadow"
        getcap "$root/usr/bin/ping" || true
        cat "$root/etc/hostname"
        stat -c '%a %U' "$root"/etc/odd*
        cat "$root"/etc/odd*
        echo
        grep ^admin: "$root/etc/passwd"
        stat -c '%a %u %n' ostree/deploy/debian/var/home/admin/.ssh/authorized_keys
        stat -c '%a %u %n' ostree/deploy/debian/var/roothome/.ssh/authorized_keys
        ls "$root/etc" | grep -cx pwned || true
    """
    with workshop.bench("test", bootstrap) as bench, workshop.helper(bench, shape) as helper:
        helper.machine.attach(target)
        partitions = steps.partition_data(manifest.partitions)
        checked = run_job(
            helper.shell, Job(("mount-sysroot", "fsck"), partitions), workshop.reporter, workshop.deadline
        )
        answer = helper.shell.run(["sh", "-c", script], deadline=workshop.deadline)
    assert checked.one("fsck") == "clean"
    said = answer.stdout.decode()
    assert answer.code == 0, answer.stderr.decode()

    again = re.findall(r"\b[0-9a-f]{64}\b", said.splitlines()[0])
    wanted = re.findall(r"\b[0-9a-f]{64}\b", ostree(repo.path, "ls", "-d", "-C", repo.first, "/usr"))
    assert again == wanted
    assert len(wanted) == 2, "one hash of the contents, one of the folder's own metadata"
    assert "4755 0 0" in said
    assert "640 0 42" in said
    assert "cap_net_raw" in said
    assert "\ntested\n" in said
    assert "a 'quoted' $HOME `text` \\ with\nlines and no end\n" in said
    assert "640 root" in said
    assert "admin:x:4711:" in said
    assert "600 4711" in said
    assert "600 0 ostree/deploy/debian/var/roothome" in said
    assert said.splitlines()[-1] == "0"


def break_a_unit(place: Place, disk: Path) -> None:
    """Put a unit that fails into the disk's default deployment."""
    workshop = place.workshop()
    manifest = known_disk(disk)
    bootstrap = bootstrap_for(workshop, manifest, None, steps.INSPECT_STEPS)
    script = """
        set -eu
        etc=$(echo /run/composer/sysroot/ostree/deploy/debian/deploy/*.0)/etc/systemd/system
        printf '[Service]\\nExecStart=/bin/false\\n' >"$etc/broken.service"
        mkdir -p "$etc/multi-user.target.wants"
        ln -s ../broken.service "$etc/multi-user.target.wants/broken.service"
        umount /run/composer/sysroot
    """
    target = new_target(disk)
    with (
        workshop.bench("test", bootstrap) as bench,
        workshop.helper(bench, HelperShape(2**30, 2)) as helper,
    ):
        helper.machine.attach(target)
        job = Job(("mount-sysroot",), steps.partition_data(manifest.partitions))
        run_job(helper.shell, job, workshop.reporter, workshop.deadline)
        answer = helper.shell.run(["sh", "-c", script], deadline=workshop.deadline)
        assert answer.code == 0, answer.stderr
        helper.machine.detach(target, workshop.deadline)


def test_failed_unit_fails_verify_and_leaves_console_and_screenshot(
    place: Place, built: Built, fresh: Path, tmp_path: Path
) -> None:
    break_a_unit(place, fresh)
    verified = place.composer("verify", fresh, "--evidence", tmp_path / "kept")
    assert verified.code == 1
    assert "failed units: broken.service" in verified.stderr
    assert str(tmp_path / "kept") in verified.stderr
    # Not multi-user.target: agetty may be hanging up the terminal as systemd tells of it; the line is lost.
    assert "local-fs.target" in (tmp_path / "kept" / "bios.console.log").read_text(errors="replace")
    assert (tmp_path / "kept" / "bios.png").read_bytes().startswith(b"\x89PNG")


def test_rollback_boots_the_former_commit_again(place: Place, repo: Repo, fresh: Path) -> None:
    updated = place.composer("update", fresh)
    assert updated.code == 0, updated.stderr
    fresh.touch()  # as a boot of it does: the composer cannot know what is on it then
    back = place.composer("rollback", fresh)
    assert back.code == 0, back.stderr
    assert repo.first[:12] in back.stdout
    verified = place.composer("verify", fresh)
    assert verified.code == 0, verified.stderr
    assert repo.first[:12] in verified.stdout
    said = json.loads(place.composer("inspect", fresh, "--deep", "--json").stdout)
    assert [found["commit"] for found in said["deep"]["deployments"]] == [repo.first, repo.second]
    kargs = said["deep"]["kargs"]
    assert all("console=ttyS0,115200" in line and "composer.rollback" not in line for line in kargs)
    # Nothing is pulled anew; what nothing needs is removed, and its room given back.
    compact = place.composer("update", fresh, "--compact", "--keep", "1")
    assert compact.code == 0, compact.stderr
    assert f"{repo.first[:12]} pruned" in compact.stdout
    assert "shrank" in compact.stdout
