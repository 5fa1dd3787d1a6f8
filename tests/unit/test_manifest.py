"""The manifest beside a disk, and that a crash leaves the old pair or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composer.disk.manifest import (
    Deed,
    Deployment,
    Identity,
    Keys,
    Manifest,
    Room,
    changed,
    check_folders_of_root,
    check_place,
    load_manifest,
    manifest_path,
    publish_disk,
    publish_manifest,
    settle,
)
from composer.errors import BadInput, ComposerError
from composer.store.folders import written_beside

ROOM = Room(size=2**30, free=2**20)
Make = Callable[..., Manifest]
OLD, NEW = "1" * 64, "2" * 64


@pytest.fixture
def disk(tmp_path: Path, manifest_of: Make) -> Path:
    """Make a disk with the manifest of the old commit."""
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"old content")
    manifest_path(path).write_text(manifest_of(path, OLD).model_dump_json())
    return path


@pytest.fixture
def new(disk: Path) -> Path:
    """Make the finished disk that is to take its place."""
    path = disk.with_name("work") / disk.name
    path.parent.mkdir()
    path.write_bytes(b"the new content")
    return path


def waiting(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.manifest.json.next")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def commit_of(disk: Path) -> str:
    manifest = load_manifest(disk)
    assert manifest is not None
    return manifest.commit


def test_round_trip(disk: Path, new: Path, manifest_of: Make) -> None:
    manifest = manifest_of(new, NEW)
    assert load_manifest(disk) is None or load_manifest(disk) != manifest
    published = publish_disk(new, disk, manifest)
    assert load_manifest(disk) == published
    assert published.model_copy(update={"inode": None}) == manifest
    assert json.loads(manifest_path(disk).read_text())["deployments"][0]["commit"] == NEW


def test_no_manifest(tmp_path: Path) -> None:
    assert load_manifest(tmp_path / "disk.qcow2") is None


def test_publish_leaves_the_pair_alone(disk: Path, new: Path, manifest_of: Make) -> None:
    publish_disk(new, disk, manifest_of(new, NEW))
    assert disk.read_bytes() == b"the new content"
    assert commit_of(disk) == NEW
    assert names(disk.parent) == {disk.name, manifest_path(disk).name}


def test_a_refusal_at_the_last_moment_is_no_bad_input(disk: Path, new: Path, manifest_of: Make) -> None:
    def check() -> None:
        raise BadInput("somebody stands on it", hint="look")

    with pytest.raises(ComposerError, match="somebody stands on it") as caught:
        publish_disk(new, disk, manifest_of(new, NEW), check)
    assert caught.value.exit_code == 1
    assert caught.value.hint == "look"
    assert disk.read_bytes() == b"old content"
    assert names(disk.parent) == {disk.name, manifest_path(disk).name}


def test_publish_of_a_first_disk(tmp_path: Path, new: Path, manifest_of: Make) -> None:
    first = tmp_path / "first.qcow2"
    publish_disk(new, first, manifest_of(new, NEW))
    assert commit_of(first) == NEW


def test_crash_before_the_disks_rename(disk: Path, new: Path, manifest_of: Make) -> None:
    waiting(disk).write_text(manifest_of(new, NEW).model_dump_json())
    assert commit_of(disk) == OLD
    settle(disk)
    assert commit_of(disk) == OLD
    assert names(disk.parent) == {disk.name, manifest_path(disk).name}


def test_crash_after_the_disks_rename(disk: Path, new: Path, manifest_of: Make) -> None:
    waiting(disk).write_text(manifest_of(new, NEW).model_dump_json())
    new.replace(disk)
    assert commit_of(disk) == NEW
    settle(disk)
    assert commit_of(disk) == NEW
    assert names(disk.parent) == {disk.name, manifest_path(disk).name}


def test_crash_after_the_first_disks_rename(tmp_path: Path, new: Path, manifest_of: Make) -> None:
    first = tmp_path / "first.qcow2"
    waiting(first).write_text(manifest_of(new, NEW).model_dump_json())
    assert load_manifest(first) is None
    new.replace(first)
    settle(first)
    assert commit_of(first) == NEW


@pytest.mark.parametrize("garbage", [b"", b"{", b"\0" * 4096, b"\xff\xfe", b"[]", b'{"format": 1}'])
def test_crash_while_writing(disk: Path, garbage: bytes) -> None:
    waiting(disk).write_bytes(garbage)
    assert commit_of(disk) == OLD
    settle(disk)
    assert commit_of(disk) == OLD
    assert not waiting(disk).exists()


def test_crash_before_the_first_disk(tmp_path: Path, new: Path, manifest_of: Make) -> None:
    first = tmp_path / "first.qcow2"
    waiting(first).write_text(manifest_of(new, NEW).model_dump_json())
    settle(first)
    assert not waiting(first).exists()
    assert load_manifest(first) is None


def test_failed_publish_leaves_the_old_pair(disk: Path, new: Path, manifest_of: Make) -> None:
    manifest = manifest_of(new, NEW)
    new.unlink()
    with pytest.raises(OSError, match="No such file"):
        publish_disk(new, disk, manifest)
    settle(disk)
    assert commit_of(disk) == OLD


@pytest.mark.parametrize("change", [{"recipe": "/caf\udce9.toml"}, {"keys": Keys(gpg=("A" * 2**22,))}])
def test_a_manifest_that_could_not_be_read_again_is_not_published(
    disk: Path, new: Path, manifest_of: Make, change: dict[str, object]
) -> None:
    """It would be dropped by whoever comes next, and the new disk have none."""
    with pytest.raises(BadInput):
        publish_disk(new, disk, manifest_of(new, NEW).model_copy(update=change))
    assert commit_of(disk) == OLD
    assert new.exists()
    assert not waiting(disk).exists()


def test_the_last_check_comes_when_all_is_written(disk: Path, new: Path, manifest_of: Make) -> None:
    def check() -> None:
        assert waiting(disk).exists()
        raise ComposerError("changed")

    with pytest.raises(ComposerError, match="changed"):
        publish_disk(new, disk, manifest_of(new, NEW), check)
    assert commit_of(disk) == OLD
    assert new.exists()
    assert not waiting(disk).exists()


@pytest.mark.parametrize("there", ["a disk of ours", "another file", "a manifest alone"])
def test_the_new_disk_is_as_open_as_ours_was(disk: Path, new: Path, manifest_of: Make, there: str) -> None:
    disk.chmod(0o644)
    new.chmod(0o600)
    if there == "another file":
        manifest_path(disk).unlink()
    if there == "a manifest alone":
        disk.unlink()
    publish_disk(new, disk, manifest_of(new, NEW))
    assert commit_of(disk) == NEW
    assert disk.stat().st_mode & 0o777 == (0o644 if there == "a disk of ours" else 0o600)


def test_places_that_nothing_can_be_put_in(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * 222)
    check_place(longest)
    with written_beside(waiting(longest)):
        pass
    with pytest.raises(BadInput, match="too long"):
        check_place(tmp_path / ("é" * 111 + "x"))
    with pytest.raises(BadInput, match="is no file"):
        check_place(tmp_path)


def test_a_disk_that_is_a_mount(tmp_path: Path) -> None:
    disk, mounts = tmp_path / "odd \\name", tmp_path / "mounts"
    disk.touch()
    rest = "rw - ext4 /dev/vda1 rw\n"
    mounts.write_text(f"1 2 3:4 / {tmp_path} {rest}")
    check_place(disk, mounts)
    mounts.write_text(f"1 2 3:4 / {tmp_path} {rest}1 2 3:4 /x {tmp_path}/odd\\040\\134name {rest}")
    with pytest.raises(BadInput, match="mount of its own"):
        check_place(disk, mounts)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"{", b"\xff", b"[" * 100000, b'{"format": 1, "surprise": 2}', b'{"deployments": []}'],
)
def test_damaged(disk: Path, content: bytes) -> None:
    manifest_path(disk).write_bytes(content)
    with pytest.raises(BadInput, match="is damaged"):
        load_manifest(disk)


def test_the_former_format_is_read_and_written_as_the_present_one(disk: Path) -> None:
    former = json.loads(manifest_path(disk).read_text())
    del former["written"]
    manifest_path(disk).write_text(json.dumps(former | {"format": 1}))
    manifest = load_manifest(disk)
    assert manifest is not None
    assert (manifest.format, manifest.written) == (2, None)


def test_a_format_of_the_future_is_refused_by_name(disk: Path) -> None:
    future = json.loads(manifest_path(disk).read_text()) | {"format": 3, "surprise": 1}
    manifest_path(disk).write_text(json.dumps(future))
    with pytest.raises(BadInput, match="has format 3; this composer reads 1 to 2"):
        load_manifest(disk)


def test_a_manifest_that_is_a_folder_says_what_mends_it(disk: Path) -> None:
    manifest_path(disk).unlink()
    manifest_path(disk).mkdir()
    with pytest.raises(BadInput, match="no regular file") as caught:
        load_manifest(disk)
    assert "composer build RECIPE --force" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("surprise", 1),
        ("keep", 0),
        ("keep", "x"),
        ("deployments", []),
        ("partitions", {"root": "x"}),
        ("ref", None),
    ],
)
def test_damaged_in_one_place(disk: Path, key: str, value: object) -> None:
    said = json.loads(manifest_path(disk).read_text())
    manifest_path(disk).write_text(json.dumps({**said, key: value}))
    with pytest.raises(BadInput, match=f"is damaged: {key}"):
        load_manifest(disk)


EVIL = "/../../../../../../tmp/evil/" + "a" * 40
HOSTILE: list[tuple[str, object]] = [
    ("name", "../x"), ("plan", EVIL), ("ref", "../x"), ("ref", "a/../../x"), ("ref", "--repo=/"),
    ("ref", "a\n"), ("repo", ""), ("repo", "a\0b"), ("repo", "x" * 5000), ("repo", "https://me:secret@example.org"),
    ("recipe", "a\0b"), ("stateroot", "../x"), ("stateroot", "-x"), ("remote", "a/b"), ("keep", 11),
    ("firmware", "coreboot"), ("partitions.root", 0), ("partitions.root", 129), ("partitions.root", 2**70),
    ("partitions.../x", 1), ("helper.ref", "-x"), ("helper.commit", EVIL), ("helper.commit", "1" * 63),
    ("helper.commit", "1" * 64 + "\n"), ("helper.memory", 1), ("helper.memory", 2**50), ("helper.cpus", 0),
    ("helper.cpus", 10**6), ("deployments.0.commit", EVIL), ("deployments.0.stateroot", "a/b"),
    ("deployments.0.serial", -1), ("deployments.0.version", "x" * 200), ("disk.size", -1),
    ("disk.mtime_ns", 2**80), ("inode", -1), ("keys.gpg", ["not base64!"]), ("keys.ed25519", ["AAAA"]),
    ("tls.key", "a\0b"), ("root.free", -1), ("history.0.what", "x\x1b[2J"), ("history.0.time", "x" * 99),
    ("history.0.commit", EVIL), ("history.0.bytes", -1), ("history.0.seconds", 1e300),
]  # fmt: skip


def put(said: Any, key: str, value: object) -> None:
    """Set what a dotted key names, in tables and lists; the last name is taken whole."""
    *above, last = key.split(".", 2 if "deployments" in key or "history" in key else 1)
    for part in above:
        said = said[int(part) if part.isdigit() else part]
    said[last] = value


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=[f"{n}-{key}" for n, (key, _) in enumerate(HOSTILE)])
def test_a_field_of_a_form_that_it_cannot_have(disk: Path, key: str, value: object) -> None:
    said = json.loads(manifest_path(disk).read_text())
    deed = {"time": "2026-11-29T00:00:00Z", "what": "build", "commit": OLD, "seconds": 1.0, "bytes": 1}
    said |= {"history": [deed], "root": {"size": 2, "free": 1}}
    Manifest.model_validate(said)
    put(said, key, value)
    manifest_path(disk).write_text(json.dumps(said))
    with pytest.raises(BadInput, match=f"is damaged: {key.partition('.')[0]}"):
        load_manifest(disk)


def test_a_change_to_what_no_manifest_holds_is_refused(disk: Path, manifest_of: Make) -> None:
    with pytest.raises(BadInput, match="ref: "):
        changed(manifest_of(disk), {"ref": "../x"})
    assert changed(manifest_of(disk), {"ref": "os/other"}).ref == "os/other"


@pytest.mark.parametrize("name", ["disk.qcow2.manifest.json", "disk.qcow2.manifest.json.next"])
@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "socket"])
def test_what_is_no_file_is_not_read(disk: Path, name: str, kind: str) -> None:
    """A FIFO would hold us up, and a link may lead to /dev/zero."""
    path = disk.with_name(name)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(disk.parent):
            made.bind(name)
    if name.endswith(".next"):  # nothing waits there, and the disk's own manifest counts
        assert commit_of(disk) == OLD
    else:
        with pytest.raises(BadInput, match=r"no regular file|a symbolic link|cannot read"):
            load_manifest(disk)


def test_too_large(disk: Path) -> None:
    with manifest_path(disk).open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(BadInput, match="larger than 4096 KiB"):
        load_manifest(disk)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_manifest_keeps_its_mode(disk: Path, new: Path, manifest_of: Make, mode: int) -> None:
    manifest_path(disk).chmod(mode)
    publish_disk(new, disk, manifest_of(new, NEW))
    assert manifest_path(disk).stat().st_mode & 0o777 == mode
    publish_manifest(disk, manifest_of(disk, NEW))
    assert manifest_path(disk).stat().st_mode & 0o777 == mode


def test_a_manifest_whose_writer_was_killed_is_cleared_away(disk: Path) -> None:
    left = disk.with_name(f".{disk.name}.manifest.json.abcd1234.new")
    left.write_text("{")
    settle(disk)
    assert not left.exists()
    assert commit_of(disk) == OLD


@pytest.mark.asroot
@pytest.mark.skipif(os.getuid() != 0, reason="root works in folders of others")
@pytest.mark.parametrize(
    ("owner", "mode", "good"),
    [(0, 0o755, True), (0, 0o1777, False), (0, 0o775, False), (0, 0o777, False), (65534, 0o755, False)],
)
@pytest.mark.parametrize("place", ["its own", "above"])
def test_root_works_in_no_folder_that_others_can_write_to(
    tmp_path: Path, owner: int, mode: int, good: bool, place: str
) -> None:
    above = tmp_path / "above"
    folder = above / "own"
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").touch()
    shared = folder if place == "its own" else above
    os.chown(shared, owner, owner)
    shared.chmod(mode)
    if good or (place == "above" and mode & 0o1000):
        check_folders_of_root(folder)
    else:
        with pytest.raises(BadInput, match=f"others can write to {shared}"):
            check_folders_of_root(folder)


def test_history_does_not_grow_for_ever(disk: Path) -> None:
    manifest = load_manifest(disk)
    assert manifest is not None
    for number in range(150):
        deed = Deed(time="2030-01-01T00:00:00Z", what="update", commit=OLD, seconds=1.0, bytes=number)
        manifest = manifest.after(deed, manifest.deployments, Identity.of(disk), ROOM)
    assert [deed.bytes for deed in manifest.history] == list(range(50, 150))


def test_identity_tells_a_written_disk(disk: Path) -> None:
    before = Identity.of(disk)
    assert Identity.of(disk) == before
    with disk.open("ab") as file:
        file.write(b"x")
    assert Identity.of(disk) != before


def test_deployment_as_the_guest_tells_it() -> None:
    assert Deployment.parse(f"{NEW} 0 demo origin:os/good 12.1 (Bookworm)") == Deployment(
        commit=NEW, serial=0, stateroot="demo", refspec="origin:os/good", version="12.1 (Bookworm)"
    )
    bare = Deployment.parse(f"{NEW} 3 demo - -")
    assert (bare.serial, bare.refspec, bare.version) == (3, None, None)


@pytest.mark.parametrize(
    "line", ["", "a b", f"{NEW} x demo - -", "../../x 0 demo - -", f"{NEW} 0 demo - \ud800"]
)
def test_hostile_deployment(line: str) -> None:
    with pytest.raises(ComposerError):
        Deployment.parse(line)


def test_no_deployment_after_an_update(disk: Path) -> None:
    manifest = load_manifest(disk)
    assert manifest is not None
    deed = Deed(time="2026-11-29T00:00:00Z", what="update", commit=NEW, seconds=1.0, bytes=0)
    with pytest.raises((ComposerError, ValueError)):
        manifest.after(deed, (), Identity.of(disk), ROOM)


def test_a_disk_booted_before_the_next_composer_came_keeps_its_manifest(
    disk: Path, new: Path, manifest_of: Make
) -> None:
    """Cut off between the two renames; then somebody boots the new disk."""
    manifest = publish_disk(new, disk, manifest_of(new, NEW))
    manifest_path(disk).rename(manifest_path(disk).with_name(f"{manifest_path(disk).name}.next"))
    with disk.open("ab") as file:
        file.write(bytes(4096))
    assert load_manifest(disk) == manifest
    settle(disk)
    assert load_manifest(disk) == manifest
    assert sorted(path.name for path in disk.parent.glob("disk*")) == [disk.name, manifest_path(disk).name]


def test_what_waits_for_another_disk_does_not_count(disk: Path, new: Path, manifest_of: Make) -> None:
    """Cut off before the disk's rename, and the old disk was booted since."""
    before = publish_disk(new, disk, manifest_of(new, OLD))
    other = disk.with_name("other")
    other.write_bytes(b"another")
    waiting = manifest_of(other, NEW).model_copy(update={"inode": other.stat().st_ino})
    manifest_path(disk).with_name(f"{manifest_path(disk).name}.next").write_text(waiting.model_dump_json())
    with disk.open("ab") as file:
        file.write(bytes(4096))
    assert load_manifest(disk) == before
    settle(disk)
    assert load_manifest(disk) == before


def test_a_rename_that_fails_leaves_nothing_waiting(disk: Path, new: Path, manifest_of: Make) -> None:
    manifest = manifest_of(new, NEW)
    disk.unlink(missing_ok=True)
    disk.mkdir()
    (disk / "in the way").touch()
    with pytest.raises(OSError, match="directory"):
        publish_disk(new, disk, manifest)
    assert [path.name for path in disk.parent.iterdir() if ".next" in path.name] == []
