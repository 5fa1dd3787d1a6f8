"""The host's OSTree repo: what is asked of it, through the `ostree` program.

Nothing of a commit is mounted or run here, and no path of a commit is followed on the host: paths are
looked up in the commit's own listing.
"""

from __future__ import annotations

import configparser
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from composer.deadline import Deadline
from composer.errors import BadInput, ToolFailed
from composer.process import run
from composer.recipe.load import host_path

# `ostree ls -R`: type and mode, uid, gid, size, path; links add ' -> target'.
_LISTED = re.compile(r"^([-dl])(0[0-7]{4}) +(\d+) +(\d+) +(\d+) (/.*)$", re.DOTALL)
_COMMIT = re.compile(r"^[0-9a-f]{64}$")
_MODULES = "/usr/lib/modules"
_REQUEST_SECONDS = 20.0


@dataclass(frozen=True)
class Listed:
    """One path of a commit: ``type`` is '-', 'd' or 'l'; ``size`` in bytes."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str | None


@dataclass(frozen=True)
class Kernel:
    """The kernel of a commit; ``initramfs`` is None where it brings none of its own."""

    version: str
    vmlinuz: str
    initramfs: str | None


@dataclass(frozen=True)
class Tree:
    """Everything that a commit holds, by path."""

    commit: str
    paths: dict[str, Listed]

    def programs(self) -> list[str]:
        """Return the names of all programs that PATH would find."""
        folders = {"/usr/bin", "/usr/sbin", "/bin", "/sbin"}
        return sorted({path.rpartition("/")[2] for path in self.paths if path.rpartition("/")[0] in folders})

    @property
    def content_bytes(self) -> int:
        """The room its files take on a file system with 4 KiB blocks, an inode each included."""
        blocks = sum((item.size + 4095) // 4096 * 4096 for item in self.paths.values() if item.type == "-")
        return blocks + 512 * len(self.paths)

    def kernel(self) -> Kernel:
        """Return the commit's kernel, as ostree finds it (ostree-sysroot-deploy.c, get_kernel_layout).

        Raises BadInput where there is none, or more than one.
        """
        pattern = re.compile(rf"^{_MODULES}/([^/]+)/vmlinuz$")
        versions = sorted(found[1] for path in self.paths if (found := pattern.match(path)))
        if not versions:
            raise BadInput(
                f"commit {self.commit[:12]} has no kernel: no file {_MODULES}/VERSION/vmlinuz",
                hint="put the kernel there when the tree is composed (ostree admin deploy wants it so)",
            )
        if len(versions) > 1:
            raise BadInput(f"commit {self.commit[:12]} has {len(versions)} kernels: {', '.join(versions)}")
        folder = f"{_MODULES}/{versions[0]}"
        initramfs = f"{folder}/initramfs.img"
        return Kernel(versions[0], f"{folder}/vmlinuz", initramfs if initramfs in self.paths else None)


def _parse_listing(commit: str, text: str) -> Tree:
    paths: dict[str, Listed] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        # A path with a newline goes on in a line that does not look like an entry.
        if _LISTED.match(line) or not lines:
            lines.append(line)
        elif line:
            lines[-1] += "\n" + line
    for line in lines:
        if found := _LISTED.match(line):
            kind, mode, uid, gid, size, path = found.groups()
            name, arrow, target = path.partition(" -> ") if kind == "l" else (path, "", "")
            paths[name] = Listed(kind, int(mode, 8), int(uid), int(gid), int(size), target if arrow else None)
    return Tree(commit, paths)


@dataclass(frozen=True)
class Repo:
    """A local repo in archive mode, which is the one that can be exported over HTTP."""

    path: Path
    source: str
    """What the user named: the folder, or the URL that this repo mirrors."""

    def _ostree(self, *argv: str, deadline: Deadline) -> str:
        return run(["ostree", f"--repo={self.path}", *argv], deadline=deadline).text

    def resolve(self, ref: str, deadline: Deadline) -> str:
        """Return the commit that ``ref`` names; BadInput, with the refs there are, where it names none."""
        try:
            commit = self._ostree("rev-parse", "--", ref, deadline=deadline).strip()
        except ToolFailed as error:
            refs = self._ostree("refs", deadline=deadline).split()
            some = ", ".join(sorted(refs)[:8]) or "none at all"
            raise BadInput(
                f"the repo {self.source} has no ref {ref!r}; it has {some}",
                hint=f"ostree --repo={self.source} refs",
            ) from error
        if not _COMMIT.match(commit):
            raise BadInput(f"the ref {ref!r} of {self.source} names no commit: {commit[:80]!r}")
        return commit

    def tree(self, commit: str, deadline: Deadline) -> Tree:
        """Return the listing of a whole commit."""
        try:
            text = self._ostree("ls", "-R", commit, deadline=deadline)
        except ToolFailed as error:
            raise BadInput(
                f"commit {commit[:12]} of {self.source} cannot be read: {error.message}",
                hint=f"ostree --repo={self.source} fsck",
            ) from error
        return _parse_listing(commit, text)

    def kernel_tree(self, commit: str, deadline: Deadline) -> Tree:
        """Return the part of a commit in which its kernel lies, which is much quicker than all of it."""
        paths: dict[str, Listed] = {}
        try:
            paths |= _parse_listing(commit, self._ostree("ls", commit, _MODULES, deadline=deadline)).paths
            folders = [path for path, item in paths.items() if item.type == "d" and path != _MODULES]
            if folders:
                inner = self._ostree("ls", commit, *folders, deadline=deadline)
                paths |= _parse_listing(commit, inner).paths
        except ToolFailed as error:
            if "No such file or directory" not in error.stderr and "not found" not in error.stderr.lower():
                raise
        return Tree(commit, paths)

    def has_commit(self, commit: str, deadline: Deadline) -> bool:
        """Whether the repo still holds a commit."""
        try:
            self._ostree("show", "--raw", commit, deadline=deadline)
        except ToolFailed:
            return False
        return True

    def read(self, commit: str, path: str, deadline: Deadline) -> bytes:
        """Return the content of one file of a commit."""
        return run(["ostree", f"--repo={self.path}", "cat", commit, path], deadline=deadline).stdout

    def export_argv(self, commit: str) -> list[str]:
        """Return the command that writes a commit as a tar stream, owners and modes included."""
        return ["ostree", f"--repo={self.path}", "export", commit]


def is_url(source: str) -> bool:
    """Whether a repo is named by its URL rather than by its folder."""
    return source.startswith(("http://", "https://"))


def open_repo(source: str, folder: Path, mirrors: Path, refs: list[str], deadline: Deadline) -> Repo:
    """Return the repo that a recipe names: a folder (relative to ``folder``) or an http(s) URL.

    Of a URL, ``refs`` are mirrored below ``mirrors``, only what is new being fetched.  Raises BadInput
    where there is no repo, or one of a mode that cannot be exported.
    """
    if is_url(source):
        return _mirror(source.rstrip("/"), mirrors, refs, deadline)
    path = host_path(source, folder).resolve()
    try:
        text = (path / "config").read_text()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} is no OSTree repo: it has no readable file 'config'",
            hint=f"ostree init --mode=archive --repo={path}   makes an empty one",
        ) from error
    mode = _mode(text, str(path))
    if mode not in ("archive", "archive-z2"):
        raise BadInput(
            f"the repo {path} has mode {mode!r}; only an archive repo can be exported to the helper",
            hint=f"ostree init --mode=archive --repo=NEW && ostree pull-local --repo=NEW {path} REF",
        )
    return Repo(path, str(path))


def _mode(config: str, where: str) -> str:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(config)
        return parser.get("core", "mode")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{where} is no OSTree repo: its config has no core.mode") from error


def _mirror(url: str, mirrors: Path, refs: list[str], deadline: Deadline) -> Repo:
    with requests.Session() as session:

        def fetch(path: str) -> str | None:
            try:
                answer = session.get(f"{url}/{path}", timeout=min(_REQUEST_SECONDS, deadline.left() + 1))
            except requests.RequestException as error:
                raise BadInput(f"the repo {url} cannot be reached: {_cause(error)}") from error
            return answer.text if answer.ok else None

        config = fetch("config")
        if config is None:
            raise BadInput(f"{url} is no OSTree repo: it has no file 'config'", hint=f"curl -f {url}/config")
        _mode(config, url)
        _check_refs(url, refs, fetch)
    path = mirrors / hashlib.sha256(url.encode()).hexdigest()[:32]
    argv = ["ostree", f"--repo={path}"]
    if not (path / "config").exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        run([*argv, "init", "--mode=archive"], deadline=deadline)
    # Checksums are always verified; signatures are not yet asked of any remote.
    run(
        [*argv, "remote", "add", "--if-not-exists", "--no-sign-verify", "--no-gpg-verify", "origin", url],
        deadline=deadline,
    )
    run([*argv, "pull", "--mirror", "--depth=0", "origin", *refs], deadline=deadline)
    return Repo(path, url)


def _check_refs(url: str, refs: list[str], fetch: Callable[[str], str | None]) -> None:
    for ref in refs:
        if not _COMMIT.match(ref) and fetch(f"refs/heads/{ref}") is None:
            raise BadInput(f"the repo {url} has no ref {ref!r}", hint=f"curl -f {url}/refs/heads/{ref}")


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a requests error, which wraps several."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error)[:200]
