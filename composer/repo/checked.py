"""The composer's own repo, in the cache: what comes from a user's repo or from a remote is pulled into it
with every checksum verified, and signatures where a recipe names keys.

Bootstrap images and delta disks are made of it alone, so a helper's own tree has been verified.  Its mode
is bare-user: owners and the like lie in extended attributes, which takes no root, and files lie unpacked,
so what a helper gets of it need not be inflated at an emulated CPU's pace.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import FREE_ROOM, BadInput, ComposerError, NoSpace, NotTrusted, RepoDamaged, ToolFailed
from composer.repo.local import COMMIT, Repo
from composer.repo.signatures import Trust, check_binding, check_ed25519
from composer.repo.upstream import is_url
from composer.store.files import read_file
from composer.store.folders import publish, written_beside
from composer.store.locks import locked

_MODE = "bare-user"
# Below a remote's refs: one for each commit that was fetched, for as long as it is used.
_PINNED = "pinned"
_PIN = ".pin"
# OSTREE_MAX_METADATA_SIZE of ostree-core.h.
_LARGEST_METADATA = 128 * 2**20
_IN_USE_SECONDS = 86400.0
# A remote's address but while it is pulled from, and before its keys are all there.
_NOWHERE = "file:///"
_UNFINISHED = "file:///unfinished"
# What libostree 2022.7 says, by what is at fault (ostree-repo-pull.c, ostree-repo-pull-verify.c,
# ostree-gpg-verify-result.c).
_UNTRUSTED = re.compile(
    r"GPG|gpg|signature|public key|[Kk]ey expired|ref binding|collection binding|no requested ref"
)
_DAMAGED = re.compile(
    r"[Cc]orrupt|checksum|No such metadata object|[Nn]o such file object|Couldn't find|not found|[Ii]nvalid"
    r"|inflat|[Ee]xpected|[Pp]arsing|File header|Need more input|too large|No such file|HTTP 404|short read"
)
# ostree-repo-commit.c, and what the system says.
_FULL = re.compile(r"min-free-space|No space left|quota exceeded")


@dataclass(frozen=True)
class CheckedRepo:
    """That repo; ``folder`` need not exist yet."""

    folder: Path

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / "repo"

    def of(self, source: str) -> Repo:
        """Return it as the repo in which all that was fetched of ``source`` is found."""
        return Repo(self.path, source, _MODE)

    def _exists(self) -> bool:
        # What `ostree init` makes last (ostree_repo_create); one that was cut off is gone on with.
        return (self.path / "objects").is_dir()

    @contextmanager
    def _held(self, deadline: Deadline) -> Iterator[Repo]:
        """Hold its lock, and have it made: two pulls at once would write the same objects."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        with locked(lock, purpose="fetching a commit", what="the composer's own repo", wait=deadline):
            repo = self.of("the composer's own repo")
            if not self._exists():
                self.path.mkdir(exist_ok=True)
                try:
                    repo.ostree("init", f"--mode={_MODE}", deadline=deadline)
                except ToolFailed as error:
                    if _FULL.search(error.stderr):
                        raise NoSpace(f"no room for a repo in {self.folder}", hint=FREE_ROOM) from error
                    raise BadInput(
                        f"no OSTree repo can be made in {self.folder}: {error.message}",
                        hint="export COMPOSER_CACHE=FOLDER   on a file system with extended attributes",
                    ) from error
            # Of a composer that was killed as it wrote an address.
            for left in self.path.glob(".config.*.new"):
                left.unlink(missing_ok=True)
            yield repo

    def head(self, source: str, url: str, ref: str, trust: Trust, deadline: Deadline) -> str:
        """Return the commit that ``ref`` names at ``url``, fetched and proven as far as its metadata goes."""
        with self._held(deadline) as repo:
            remote = _remote(repo, source, trust, deadline)
            if COMMIT.match(ref):
                _drop_unlike(repo.object_path(f"{ref}.commit"), ref)
            try:
                _pull(repo, remote, url, source, ref, ("--commit-metadata-only",), deadline)
            except RepoDamaged as error:
                if "HTTP 404" not in error.message or COMMIT.match(ref):
                    raise
                raise BadInput(
                    f"the repo {source} has no ref {ref!r}", hint=f"curl -f {source}/refs/heads/{ref}"
                ) from error
            commit = ref if COMMIT.match(ref) else repo.resolve(f"{remote}:{ref}", deadline)
            _prove(repo, commit, ref, trust, deadline)
            return commit

    def fetch(self, source: str, url: str, ref: str, commit: str, trust: Trust, deadline: Deadline) -> Repo:
        """Bring a commit in whole; return the repo that has it.

        Only what is missing moves.  Raises NotTrusted where a signature or the binding to the ref is not as
        it must be, RepoDamaged, with the object's name, where the source is.
        """
        with self._held(deadline) as repo:
            remote = _remote(repo, source, trust, deadline)
            wanted = commit if COMMIT.match(ref) else f"{ref}@{commit}"
            _drop_unlike(repo.object_path(f"{commit}.commit"), commit)
            _pull(repo, remote, url, source, wanted, (), deadline)
            _prove(repo, commit, ref, trust, deadline)
            refs = self.path / "refs" / "remotes" / remote
            pin = refs / _PINNED / commit
            # Of itself a commit that a checksum named has no ref, and a ref that moved on has left one.
            if not pin.exists():
                pin.parent.mkdir(parents=True, exist_ok=True)
                # Not below refs: half a ref there would break the repo.
                with written_beside(self.folder / _PIN) as new:
                    new.write_text(f"{commit}\n")
                publish(self.folder / _PIN, pin)
            for used in (refs / ref, pin):  # their times are those of their last use
                with suppress(FileNotFoundError):
                    os.utime(used)
        return self.of(source)

    def prune(self, before: float, deadline: Deadline, *, dry: bool = False) -> list[str]:
        """Forget commits that no ref fetched since ``before`` names, in seconds since the epoch.

        Those of the last day stay in any case: a job may be at work with them.  Returns the refs and commits
        that go; with ``dry`` nothing does.
        """
        if not self._exists():
            return []
        with self._held(deadline) as repo:
            before = min(before, time.time() - _IN_USE_SECONDS)
            remotes = self.path / "refs" / "remotes"
            old = [ref for ref in remotes.rglob("*") if ref.is_file() and ref.stat().st_mtime < before]
            if not dry:
                for ref in old:
                    ref.unlink()
                repo.ostree("prune", "--refs-only", deadline=deadline)
        return sorted("/".join(ref.relative_to(remotes).parts[1:]) for ref in old)


def _drop_unlike(path: Path, checksum: str) -> None:
    """Remove an object whose content is not what its name says: ostree takes one that is there as it is."""
    with suppress(FileNotFoundError):
        if hashlib.sha256(read_file(path, _LARGEST_METADATA)).hexdigest() != checksum:
            path.unlink()


def _prove(repo: Repo, commit: str, ref: str, trust: Trust, deadline: Deadline) -> None:
    if trust.require_binding and not COMMIT.match(ref):
        check_binding(repo, commit, ref, deadline)
    if trust.ed25519:
        check_ed25519(repo, commit, trust.ed25519, deadline)


def _remote(repo: Repo, source: str, trust: Trust, deadline: Deadline) -> str:
    """Have a remote for a source as it is trusted by one recipe; what others trust is another remote."""
    name = f"r-{hashlib.sha256(f'{source} {trust.digest}'.encode()).hexdigest()[:24]}"
    config = repo.path / "config"
    address = _read(config).get(_group(name), "url", fallback=None)
    if address not in (None, _UNFINISHED):
        return name
    if address == _UNFINISHED:
        repo.ostree("remote", "delete", name, deadline=deadline)
    # Not --no-sign-verify: libostree 2022.7 takes that for --no-gpg-verify as well.
    option = "--set=gpg-verify=true" if trust.gpg else "--no-gpg-verify"
    repo.ostree("remote", "add", option, name, _UNFINISHED, deadline=deadline)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        # One by one: of several --gpg-import of `remote add` only the last counts (ostree 2022.7).
        for keys in trust.gpg:
            path.write_bytes(keys)
            try:
                repo.ostree("remote", "gpg-import", f"--keyring={path}", name, deadline=deadline)
            except ToolFailed as error:
                raise BadInput(f"the recipe's GPG keys cannot be used: {error.message}") from error
    _write_url(config, name, _NOWHERE)
    return name


def _pull(
    repo: Repo, remote: str, url: str, source: str, wanted: str, options: tuple[str, ...], deadline: Deadline
) -> None:
    try:
        with _addressed(repo, remote, url) as address:
            repo.ostree("pull", "--untrusted", *options, *address, remote, wanted, deadline=deadline)
    except ToolFailed as error:
        raise _explained(error, url, source, wanted) from None


@contextmanager
def _addressed(repo: Repo, remote: str, url: str) -> Iterator[tuple[str, ...]]:
    """Have a remote's address be ``url`` for the block; yield what a pull is to be told besides.

    An export's is not told by --url: every user of the host reads argv, and it has a token in it.
    """
    if url.startswith("file:"):
        yield (f"--url={url}",)
        return
    config = repo.path / "config"
    _write_url(config, remote, url)
    try:
        yield ()
    finally:
        with suppress(OSError):  # of what failed before, more is to be told; the next pull writes it anew
            _write_url(config, remote, _NOWHERE)


def _group(remote: str) -> str:
    return f'remote "{remote}"'


def _read(config: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(config.read_text())
    return parser


def _write_url(config: Path, remote: str, url: str) -> None:
    parser = _read(config)
    parser.set(_group(remote), "url", url)
    with written_beside(config, 0o600) as new, new.open("w") as file:
        parser.write(file, space_around_delimiters=False)


def _explained(error: ToolFailed, url: str, source: str, wanted: str) -> ComposerError:
    said = error.stderr.strip().splitlines() or [f"ostree ended with {error.returncode} and said nothing"]
    # What an address is called says nothing about what went wrong.
    bare, reason = (said[-1].removeprefix("error: ").replace(url, name) for name in ("", source))
    what = wanted.rpartition("@")[2][:12] if "@" in wanted else wanted
    if _UNTRUSTED.search(bare):
        return NotTrusted(f"commit {what} of {source} is not trusted: {reason}")
    if _DAMAGED.search(bare):
        place = "FOLDER" if is_url(source) else source
        there = ", on the machine that has it" if is_url(source) else ""
        return RepoDamaged(
            f"the repo {source} is damaged: {reason}",
            hint=f"ostree --repo={place} fsck --all   names all that is{there}",
        )
    if _FULL.search(bare):
        return NoSpace(f"no room for {what} of {source} in the composer's own repo: {reason}", hint=FREE_ROOM)
    return ComposerError(f"{what} cannot be fetched from {source}: {reason}")
