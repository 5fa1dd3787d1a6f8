"""Experiments on repos: damaged ones, commits that must not be trusted, and whoever talks to the export."""

from __future__ import annotations

import base64
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from composer.compose.source import opened_source
from composer.compose.supply import PULL_STEPS
from composer.compose.workshop import Workshop
from composer.deadline import Deadline
from composer.disk.manifest import Identity, Manifest, manifest_path
from composer.errors import ComposerError, GuestStepFailed
from composer.export.delta import Wanted, lacking, pack, shared_folder
from composer.export.http import HttpExport, http_export
from composer.helper.domain import Disk, Share
from composer.helper.job import Job, run_job
from composer.helper.lease import Helper, HelperShape
from composer.repo.checked import CheckedRepo
from composer.repo.local import Repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from tests.faults.experiment import SOAK_SECONDS, Experiment, Trial
from tests.signing import Gpg, sign_ed25519
from tests.vm.ground import Ground
from tests.vm.place import REF, image_of, ostree, timed

_REF = "small/tree"
_DAMAGES = ("flip", "cut", "empty", "gone", "swapped")
_SECRET = b"a secret of the host"


def _small_repo(folder: Path) -> tuple[Path, str]:
    """Make an archive repo of a few dozen files of many sizes; return it and its commit."""
    tree = folder / "tree"
    chance = random.Random("small repo")
    for number in range(40):
        path = tree / f"usr/d{number % 7}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice((1, 100, 4096, 70_000))))
        path.chmod(chance.choice((0o644, 0o755, 0o4755)))
    (tree / "usr/link").symlink_to("d0/f0")
    repo = folder / "small"
    subprocess.run(["ostree", f"--repo={repo}", "init", "--mode=archive"], check=True)
    commit = ostree(repo, "commit", "-b", _REF, f"--tree=dir={tree}", "--owner-uid=0", "--owner-gid=0")
    shutil.rmtree(tree)
    return repo, commit


def _damage(files: list[Path], chance: random.Random) -> tuple[str, Path]:
    """Damage one of some objects; return how, and which it was."""
    kind, file = chance.choice(_DAMAGES), chance.choice(files)
    content = bytearray(file.read_bytes())
    if kind == "swapped":
        other = chance.choice(
            [path for path in files if path.suffix == file.suffix and path != file] or files
        )
        content = bytearray(other.read_bytes())
    elif kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[chance.randrange(max(len(content), 1)) :]
    elif kind == "empty":
        content.clear()
    # Another file in its place: the one there may be a hard link.
    attributes = {name: os.getxattr(file, name) for name in os.listxattr(file)}
    file.unlink()
    if kind != "gone":
        file.write_bytes(content)
        for name, value in attributes.items():
            os.setxattr(file, name, value)
    return kind, file


@dataclass(frozen=True)
class _Small:
    """A small repo, sound, and a helper that can be given it by any transport."""

    folder: Path
    sound: Path
    commit: str
    own: Repo
    share: Path
    workshop: Workshop
    helper: Helper


_FRESH_SYSROOT = """
set -e
rm -rf /run/composer/sysroot
mkdir /run/composer/sysroot
ostree admin init-fs --modern /run/composer/sysroot
"""


def _host_gate(small: _Small, repo: Path, cache: Path) -> None:
    deadline = Deadline.after(60)
    with opened_source(str(repo), cache, cache, Trust(), Tls(), deadline) as source:
        source.fetch(_REF, small.commit)


def _host_refuses(small: _Small, chance: random.Random) -> None:
    """Whatever the transport: a damaged repo is refused before anything is made of it."""
    with ExitStack() as stack:
        damaged, cache = small.folder / "damaged", small.folder / "host-cache"
        for path in (damaged, cache):
            stack.callback(shutil.rmtree, path, ignore_errors=True)
        shutil.copytree(small.sound, damaged)
        cache.mkdir()
        files = sorted((damaged / "objects").glob("*/*"))
        kind, file = _damage(files, chance)
        same = file.exists() and file.read_bytes() == (small.sound / file.relative_to(damaged)).read_bytes()
        try:
            _host_gate(small, damaged, cache)
        except ComposerError as error:
            told = f"{error.message} {error.detail}".replace("/", "")
            assert file.parent.name + file.stem in told, (kind, file.name, told)
        else:
            # The last bits of what is compressed may mean nothing; what came of it is checked below.
            assert same or (kind in ("flip", "cut") and file.suffix == ".filez"), (kind, file.name)
        shutil.copy(small.sound / file.relative_to(damaged), file)
        _host_gate(small, damaged, cache)
        own = CheckedRepo(cache / "repo").path
        subprocess.run(["ostree", f"--repo={own}", "fsck"], check=True, capture_output=True)


def _guest_pulls(small: _Small, transport: str, where: bytes) -> None:
    shell, deadline = small.helper.shell, small.workshop.deadline
    answer = shell.run(["sh", "-c", _FRESH_SYSROOT], deadline=deadline)
    assert answer.code == 0, answer.stderr
    data = {"ref": _REF.encode(), "commit": small.commit.encode(), "export-url": where}
    steps = next(steps for name, steps in PULL_STEPS.items() if name == transport)
    run_job(shell, Job(steps, data), small.workshop.reporter, deadline)
    answer = shell.run(["ostree", "--repo=/run/composer/sysroot/ostree/repo", "fsck"], deadline=deadline)
    assert answer.code == 0, answer.stderr


_MOUNTED = b"file:///run/composer/export"


@contextmanager
def _offered(small: _Small, transport: str, chance: random.Random | None) -> Iterator[bytes]:
    """Offer the commit by a transport, damaged if there is chance, behind the host's own check."""
    with ExitStack() as stack:
        if transport == "http":
            served = small.folder / "served"
            stack.callback(shutil.rmtree, served, ignore_errors=True)
            shutil.copytree(small.sound, served)
            if chance:
                _damage(sorted((served / "objects").glob("*/*")), chance)
            export = stack.enter_context(http_export(served))
            listening = small.helper.shell.listening(export.serve, small.workshop.deadline)
            yield export.url_at(stack.enter_context(listening)).encode()
            return
        tree = stack.enter_context(
            shared_folder(small.share, small.own, Wanted(small.commit), small.workshop.deadline)
        )
        if chance:
            _damage(sorted((tree / "objects").glob("*/*")), chance)
        if transport == "9p":
            yield b"file:///run/composer/export/shared-repo"
            return
        image = small.folder / "delta.ext4"
        image.unlink(missing_ok=True)
        pack(tree, image, small.workshop.deadline)
        disk = Disk(image, "raw", "composer-delta", "sdc", readonly=True)
        small.helper.machine.attach(disk)
        try:
            yield _MOUNTED
        finally:
            small.helper.shell.run(["umount", "/run/composer/export"], deadline=small.workshop.deadline)
            small.helper.machine.detach(disk, small.workshop.deadline)


@contextmanager
def damaged(ground: Ground) -> Iterator[Trial]:
    """A repo with one damaged object: refused, by host and by guest, over each transport."""
    workshop = ground.place.workshop(SOAK_SECONDS)
    with ExitStack() as stack:
        folder = ground.place.folder / "damaged-repos"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        sound, commit = _small_repo(folder)
        source = stack.enter_context(
            opened_source(str(sound), folder, folder, Trust(), Tls(), workshop.deadline)
        )
        own = source.fetch(_REF, commit)
        assert len(lacking(own, Wanted(commit), workshop.deadline)) > 40
        share = folder / "share"
        share.mkdir()
        image = image_of(workshop, ground.repo.path, REF)
        bench = stack.enter_context(workshop.bench("damaged repos", image))
        shape = HelperShape(2**29, 2, Share(share, "composer-repo", "9p"))
        helper = stack.enter_context(workshop.helper(bench, shape))
        standing = _Small(folder, sound, commit, own, share, workshop, helper)

        def trial(chance: random.Random) -> None:
            small = replace(standing, workshop=timed(workshop))
            _host_refuses(small, chance)
            transport = chance.choice(("delta", "9p", "http"))
            # It ends in an error, or what was damaged means nothing and all objects are sound.
            with suppress(GuestStepFailed), _offered(small, transport, chance) as where:
                _guest_pulls(small, transport, where)
            with _offered(small, transport, None) as where:
                _guest_pulls(small, transport, where)

        yield trial


_FORGERIES = (
    "unsigned", "wrong-key", "expired-key", "older", "other-ref",
    "no-ed25519", "wrong-ed25519", "copied-ed25519",
)  # fmt: skip


@contextmanager
def forged(ground: Ground) -> Iterator[Trial]:
    """A commit that is not what the disk's manifest trusts: refused without a VM, the disk unchanged."""
    place = ground.place
    with ExitStack() as stack:
        folder = place.folder / "forged"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        repo = ground.repo.linked(folder / "repo")
        wrong, expired = Gpg(folder / "wrong").make(), Gpg(folder / "expired", expired=True).make()
        stack.callback(wrong.end)
        stack.callback(expired.end)
        key = Ed25519PrivateKey.generate()
        disk = ground.built.copied(folder / "disk.qcow2")
        text = manifest_path(disk).read_text()
        content = disk.read_bytes()

        def trial(chance: random.Random) -> None:
            kind = chance.choice(_FORGERIES)
            ref = f"forged/{chance.randrange(10**12)}"
            named = "forged/another" if kind == "other-ref" else ref
            argv = ["commit", "-b", named, f"--tree=ref={repo.second}", f"--subject={chance.random()}"]
            if kind == "older":
                argv.append("--timestamp=2001-01-01T00:00:00Z")
            commit = ostree(repo.path, *argv)
            ostree(repo.path, "refs", "--force", f"--create={ref}", commit)
            manifest = Manifest.model_validate_json(text)
            keys = manifest.keys
            if kind == "expired-key":
                public = base64.b64encode(expired.public()).decode()
                keys = keys.model_copy(update={"gpg": (public,)})
            if "ed25519" in kind:
                public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
                keys = keys.model_copy(update={"gpg": (), "ed25519": (public,)})
            signer = {"wrong-key": wrong, "expired-key": expired, "older": place.gpg, "other-ref": place.gpg}
            if kind in signer:
                signer[kind].sign(repo.path, commit)
            elif kind == "wrong-ed25519":
                sign_ed25519(repo.path, commit, Ed25519PrivateKey.generate())
            elif kind == "copied-ed25519":
                sign_ed25519(repo.path, repo.second, key)
                shutil.copy(_meta(repo.path, repo.second), _meta(repo.path, commit))
            known = {"disk": Identity.of(disk), "keys": keys, "repo": str(repo.path)}
            manifest_path(disk).write_text(manifest.model_copy(update=known).model_dump_json())
            ran = place.composer("update", disk, "--ref", ref)
            if kind == "copied-ed25519":
                place.sign(repo.path, repo.second)
            assert ran.code == 1, (kind, ran.stderr)
            assert "not trusted" in ran.stderr or "ed25519" in ran.stderr or "older than" in ran.stderr
            assert "helper" not in ran.phases(), kind
            assert disk.read_bytes() == content
            ostree(repo.path, "refs", "--delete", ref)

        yield trial


def _meta(repo: Path, commit: str) -> Path:
    return repo / "objects" / commit[:2] / f"{commit[2:]}.commitmeta"


_PIECES = (
    "..", ".", "", "%2e%2e", "..%2f", "%2f", "%5c", "\\", "..;", "%00", "\x01", "refs", "heads",
    "plain", "linked", "linked-folder", "inner", "fifo", "objects", "config", "summary", "extra", "~", "*",
    "?", "#",
    "%c0%ae%c0%ae", "\xff", "a" * 3000, "etc", "passwd", "state", "tmp", "deltas", "00", "os",
)  # fmt: skip
_METHODS = ("GET", "GET", "GET", "HEAD", "get", "POST", "TRACE", "OPTIONS", "CONNECT", "\x00", "G" * 70000)
_VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "", "HTTP/2.0", "HTTP/9.9.9", "ICY")
_HEADS = (
    "", "Range: bytes=0-99999999\r\n", "Range: bytes=-1\r\n", "Content-Length: -1\r\n", "a: b\r\n" * 200,
    "Content-Length: 99999999999\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n",
    "X: " + "y" * 70000 + "\r\n", ": \r\n", "\x00\r\n",
)  # fmt: skip


def _hostile(export: HttpExport, chance: random.Random) -> bytes:
    token = export.token
    wrong = (token[:-1], token.swapcase(), token[::-1], "", f"{token}x", "%2e")
    prefix = f"/{chance.choice((token, token, token, chance.choice(wrong)))}/"
    path = (
        chance.choice(("", "", "/", "http://x"))
        + prefix
        + "/".join(chance.choices(_PIECES, k=chance.randint(1, 7)))
    )
    request = f"{chance.choice(_METHODS)} {path} {chance.choice(_VERSIONS)}\r\n{chance.choice(_HEADS)}\r\n"
    return request.encode("latin-1") + chance.choice((b"", chance.randbytes(30)))


@contextmanager
def hostile(ground: Ground) -> Iterator[Trial]:
    """Requests that servers have stumbled over, beside clients that stall; a pull completes all the same."""
    with ExitStack() as stack:
        folder = ground.place.folder / "hostile-requests"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        repo, _ = _small_repo(folder)
        (folder / "inner").write_bytes(_SECRET)
        (repo / "refs/heads/linked").symlink_to(folder / "inner")
        (repo / "refs/heads/linked-folder").symlink_to(folder)
        (repo / "extra").write_bytes(_SECRET)
        with (repo / "config").open("a") as config:
            config.write(f'[remote "o"]\nurl=https://user:{_SECRET.decode()}@example.org/\n')
        sound = {path.read_bytes() for path in repo.rglob("*") if path.is_file() and not path.is_symlink()}
        export = stack.enter_context(http_export(repo))
        slow: list[socket.socket] = []

        def trial(chance: random.Random) -> None:
            with closing(socket.create_connection(("127.0.0.1", export.port), timeout=10)) as connection:
                if chance.random() < 0.05 and len(slow) < 100:
                    # Says half of a request and then nothing more.
                    slow.append(stack.enter_context(closing(connection.dup())))
                    connection.sendall(f"GET /{export.token}/objects/".encode())
                    return
                answer = b""
                # It may have hung up by then, which shows as one of several errors.
                with suppress(OSError):
                    connection.sendall(_hostile(export, chance))
                    connection.shutdown(socket.SHUT_WR)
                    while chunk := connection.recv(65536):
                        answer += chunk
            assert _SECRET not in answer
            head, _, body = answer.partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                length = int(head.rpartition(b"Content-Length: ")[2])
                assert body[:length] in sound | {b"[core]\nrepo_version=1\nmode=archive-z2\n", b""}

        yield trial
        mine = folder / "mine"
        for argv in (
            ["init", "--mode=bare-user"],
            ["remote", "add", "--no-gpg-verify", "o", export.url],
            ["pull", "o", _REF],
            ["fsck", "--quiet"],
        ):
            subprocess.run(["ostree", f"--repo={mine}", *argv], check=True, stdout=subprocess.DEVNULL)


EXPERIMENTS = (
    Experiment("damaged-repo", 3, 20, 500, damaged),
    Experiment("forged-commit", 2, 4, 50, forged),
    Experiment("hostile-request", 20, 100, 2000, hostile),
)
