"""Products of one recipe share no identity, and what a recipe keeps secret is found nowhere else."""

from __future__ import annotations

import json
import mmap
import random
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.experiment import Experiment, Trial
from tests.vm.ground import Ground
from tests.vm.place import HASH, REF, Ran, Trace, ostree
from tests.web import web_server

_REF = "tiny/tree"
_RECIPE = f"""
name = "tiny"
[ostree]
repo = "@REPO@"
ref = "{_REF}"
stateroot = "tiny"
[bootstrap]
ref = "{REF}"
cpus = 1
[disk]
size = "256 MiB"
firmware = "uefi"
"""
_FIXED = {"root": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "esp": "1A2B-3C4D"}
_PAIR = ("one", "other")
_FOLDERS = (
    "usr/bin", "usr/etc/ssh", "usr/lib/modules/6.1", "boot", "dev", "proc", "sys", "run", "tmp", "var",
    "sysroot",
)  # fmt: skip
# What a booted system has for itself alone (machine-id(5), systemd-random-seed(8), sshd(8)).
_OWN = ("/etc/machine-id", "/var/lib/systemd/random-seed", "/var/lib/dbus/machine-id")


def _tiny_tree(ground: Ground) -> None:
    """Commit a tree that can be deployed and holds next to nothing, unless it is there."""
    if (ground.repo.path / "refs/heads" / _REF).exists():
        return
    tree = ground.place.folder / "tiny-tree"
    for folder in _FOLDERS:
        (tree / folder).mkdir(parents=True)
    (tree / "ostree").symlink_to("sysroot/ostree")
    (tree / "usr/bin/true").write_text("#!/bin/sh\n")
    (tree / "usr/etc/hosts").write_text("127.0.0.1 localhost\n")
    (tree / "usr/lib/os-release").write_text("ID=tiny\nVERSION_ID=1\nPRETTY_NAME=Tiny\n")
    for name in ("vmlinuz", "initramfs.img"):
        (tree / "usr/lib/modules/6.1" / name).write_text(name)
    ostree(ground.repo.path, "commit", "-b", _REF, f"--tree=dir={tree}", "--owner-uid=0", "--owner-gid=0")
    shutil.rmtree(tree)


@dataclass(frozen=True)
class Part:
    """A partition: its own GUID, its first and last sector (UEFI specification, 5.3.3)."""

    guid: bytes
    first: int
    last: int


class Raw:
    """The inside of a disk, read on the host: it is our own."""

    def __init__(self, disk: Path, raw: Path) -> None:
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
        with raw.open("rb") as file:
            file.seek(512)
            head = file.read(512)
            assert head[:8] == b"EFI PART"
            (self.guid,), (count, size) = (
                struct.unpack_from("16s", head, 56),
                struct.unpack_from("<II", head, 80),
            )
            entries = file.read(count * size)
        rows = [struct.unpack_from("<16s16sQQ", entries, number * size) for number in range(count)]
        self.parts = [Part(guid, first, last) for kind, guid, first, last in rows if any(kind)]
        root = max(self.parts, key=lambda part: part.last - part.first)
        self._device = f"{raw}?offset={root.first * 512}"
        self.raw = raw

    def ids(self) -> set[str]:
        """Every identifier that the disk's tables and file systems bear."""
        found = {self.guid.hex(), *(part.guid.hex() for part in self.parts)}
        for part in self.parts:
            argv = ["/usr/sbin/blkid", "-p", "-o", "value", "-s", "UUID", "-O", str(part.first * 512)]
            argv.append(str(self.raw))
            found.add(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip())
        return found - {""}

    def debugfs(self, command: str) -> str:
        argv = ["/usr/sbin/debugfs", "-R", command, self._device]
        return subprocess.run(argv, capture_output=True, text=True, check=True, errors="replace").stdout

    def names(self, folder: str) -> list[str]:
        """What lies in a folder of the root file system."""
        rows = [line.split("/") for line in self.debugfs(f"ls -p {folder}").splitlines()]
        return [row[5] for row in rows if len(row) > 6 and row[5] not in (".", "..")]

    def assert_anonymous(self) -> None:
        """Assert that nothing is on it that a system makes for itself at its first boot."""
        for stateroot in self.names("/ostree/deploy"):
            deployed = f"/ostree/deploy/{stateroot}/deploy"
            names = [name for name in self.names(deployed) if not name.endswith(".origin")]
            places = [f"{deployed}/{name}" for name in names]
            assert places
            for place in (*places, f"/ostree/deploy/{stateroot}"):
                for own in _OWN:
                    assert self.debugfs(f"cat {place}{own}").strip() in ("", "uninitialized"), (place, own)
            for place in places:
                assert [name for name in self.names(f"{place}/etc/ssh") if name.startswith("ssh_host_")] == []


@contextmanager
def identity(ground: Ground) -> Iterator[Trial]:
    """Build after build of one recipe, two at a time."""
    place = ground.place
    _tiny_tree(ground)
    uuids = "".join(f'{role} = "{uuid}"\n' for role, uuid in _FIXED.items())
    raw = place.folder / "inside.raw"
    seen = Raw(ground.built.disk, raw).ids()
    Raw(ground.built.disk, raw).assert_anonymous()

    def build(name: str, more: str) -> Raw:
        recipe, disk = place.folder / f"{name}.toml", place.folder / f"{name}.qcow2"
        text = _RECIPE.replace("@REPO@", str(ground.repo.path))
        recipe.write_text(f'{text}{more}[output]\npath = "{disk.name}"\n')
        # Events of its own: the place's file is for one composer at a time.
        ran = place.composer("build", recipe, "--force", "--events", disk.with_suffix(".jsonl"))
        assert ran.code == 0, ran.stderr
        return Raw(disk, disk.with_suffix(".raw"))

    def trial(chance: random.Random) -> None:
        fixed = chance.random() < 0.2
        with ThreadPoolExecutor(2) as threads:
            pair = list(threads.map(build, _PAIR, ("", f"[disk.uuids]\n{uuids}" if fixed else "")))
        for number, inside in enumerate(pair):
            ids = inside.ids()
            assert len(ids) >= 5, ids
            if fixed and number == 1:
                assert ids > set(_FIXED.values()), ids
                ids -= set(_FIXED.values())
            assert seen.isdisjoint(ids), seen & ids
            seen.update(ids)
            inside.assert_anonymous()

    yield trial
    for path in (raw, *(place.folder / f"{name}.raw" for name in _PAIR)):
        path.unlink(missing_ok=True)


def _holds(path: Path, canary: bytes) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(canary) >= 0


# A private key, and the URL of an export, which has its token (composer/export/http.py).
_FORMS = (re.compile(rb"PRIVATE KEY"), re.compile(rb"127\.0\.0\.1:[0-9]+/[A-Za-z0-9_-]{20}"))
_KEY_CANARY = "c4n4ry-of-a-key"
_FAILING = """
name = "failing"
[ostree]
repo = "@URL@"
ref = "@REF@"
stateroot = "tiny"
[ostree.tls]
certificate = "secret.pem"
key = "secret.pem"
[bootstrap]
ref = "@HELPER@"
cpus = 1
[disk]
size = "256 MiB"
[[users]]
name = "nobody-has-useradd-there"
password_hash = "@HASH@"
[[files]]
path = "/etc/secret"
content = "a 'quoted' $HOME `text`"
"""


def _assert_untold(ran: Ran, trace: Path, canaries: tuple[bytes, ...]) -> None:
    """Assert that neither what a composer said nor any argv of what it started has a secret in it."""
    said, traced = (ran.stdout + ran.stderr + json.dumps(ran.events)).encode(), trace.read_bytes()
    assert b"execve(" in traced
    for canary in canaries:
        assert canary not in said
        assert canary not in traced
    for form in _FORMS:
        assert not form.search(said), form
        assert not form.search(traced), form


def _failing_build(ground: Ground, trace: Trace) -> Ran:
    """Build over HTTP from a URL with secrets of all kinds, until a step fails that has read them."""
    place = ground.place
    (place.folder / "secret.pem").write_text(f"{_KEY_CANARY}\n")
    recipe = place.folder / "failing.toml"
    # Another server than ours, so that a URL of ours is known by its token.
    with web_server(ground.repo.path) as url:
        text = _FAILING.replace("@HASH@", HASH)
        for word, meant in {"@URL@": url, "@REF@": _REF, "@HELPER@": REF}.items():
            text = text.replace(word, meant)
        recipe.write_text(text)
        return place.composer("build", recipe, "--transport", "http", "--debug", prefix=trace.prefix)


@contextmanager
def secrets(ground: Ground) -> Iterator[Trial]:
    """What builds were told in secret: not in argv, logs, events, caches, or what others can read."""
    built, place = ground.built, ground.place
    digest = HASH.rpartition("$")[2].encode()
    canaries = (HASH.encode(), digest, b"a 'quoted' $HOME `text`", _KEY_CANARY.encode())
    _tiny_tree(ground)

    def trial(_chance: random.Random) -> None:
        trace = Trace(place.folder / "failing.trace", opens=False)
        failed = _failing_build(ground, trace)
        assert failed.code == 1, failed.stderr
        assert "step 'customise'" in failed.stderr
        _assert_untold(failed, trace.path, canaries)
        _assert_untold(built.ran, built.trace.path, canaries)
        # What the build left, which the failed one shares or has a copy of, and what the failed one left.
        for folder in (place.cache, place.runs, ground.home / "cache", ground.home / "r"):
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    for canary in canaries:
                        assert not _holds(path, canary), path
        for config in (place.cache / "repo").rglob("*config*"):
            assert not _FORMS[1].search(config.read_bytes()), config
        manifest = built.disk.with_name(f"{built.disk.name}.manifest.json").read_bytes()
        assert not any(canary in manifest for canary in canaries)
        # The disk has it; were it not to be found there, nothing would have been looked for.
        assert _holds(built.disk, digest)
        assert stat.S_IMODE(built.disk.stat().st_mode) == 0o600
        # A key that opens a helper lies in a folder that nobody else may enter.
        for folder in (place.cache, place.runs, ground.home / "cache", ground.home / "r"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    yield trial


EXPERIMENTS = (
    Experiment("identity", 2, 10, 50, identity),
    Experiment("secrets", 1, 1, 1, secrets),
)
