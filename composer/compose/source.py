"""Where a job's commit comes from: the repo that a recipe or a manifest names, a folder or a URL.

Whatever it is, a commit is first fetched into the composer's own repo and verified there; what is made of
it is made from that.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, NoSpace, NotTrusted, RepoDamaged
from composer.export.http import HttpExport, http_export
from composer.repo.checked import CheckedRepo
from composer.repo.download import Downloads
from composer.repo.local import Repo, open_repo, unsound
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls, Upstream, is_url
from composer.store.folders import check_utf8, size_of
from composer.store.locks import is_abandoned, locked

# Signatures and deltas may be missing; objects may not.
_NEEDED = re.compile(r"objects/.*\.(filez|dirtree|dirmeta|commit)$")


_TOLD = 10
_LOCK = ".lock"


@dataclass(frozen=True)
class RepoSource:
    """A repo as one job sees it: a ``folder``, or else a URL, which is fetched ``through`` an export."""

    named: str
    trust: Trust
    checked: CheckedRepo
    deadline: Deadline
    folder: Repo | None
    through: HttpExport | None
    fill: Downloads | None = None

    @property
    def _url(self) -> str:
        if self.through is not None:
            return self.through.url
        assert self.folder is not None
        return f"file://{self.folder.path}"

    @property
    def known(self) -> tuple[Repo, ...]:
        """Repos beside the composer's own that may know what a disk has."""
        return (self.folder,) if self.folder else ()

    def resolve(self, ref: str) -> str:
        """Return the commit that a ref names now."""
        if self.folder is not None:
            return self.folder.resolve(ref, self.deadline)
        return self.checked.head(self.named, self._url, ref, self.trust, self.deadline)

    def fetch(self, ref: str, commit: str) -> Repo:
        """Bring a commit into the composer's own repo, verified; errors of `CheckedRepo.fetch`."""
        try:
            return self.checked.fetch(self.named, self._url, ref, commit, self.trust, self.deadline)
        except RepoDamaged as error:
            error.detail = "\n".join(self._faults(commit)[:_TOLD]) or None
            raise
        except NoSpace as error:
            # A damaged object may say that it is of any size.
            if not (faults := self._unsound(commit)):
                raise
            raise RepoDamaged(
                f"the repo {self.named} is damaged: {error.message}", detail="\n".join(faults[:_TOLD])
            ) from error
        except NotTrusted:
            raise
        except ComposerError as error:
            error.detail = error.detail or "\n".join(self._refused()[:_TOLD]) or None
            raise

    def _faults(self, commit: str) -> list[str]:
        """Name the objects at fault; libostree does not name all that are cut short or gone."""
        return self._refused() + self._unsound(commit)

    def _refused(self) -> list[str]:
        """Say what could not be brought from a URL."""
        if self.through is None:
            return []
        refused = sorted(self.through.served.refused.items())
        return [f"{path}: {why}" for path, why in refused if _NEEDED.match(path)]

    def _unsound(self, commit: str) -> list[str]:
        if self.through is not None:
            return unsound(self.through.root.glob("objects/*/*.filez"))
        assert self.folder is not None
        if not self.folder.servable:
            return []
        try:
            names = self.folder.objects(commit, self.deadline)
        except ComposerError:  # even listing it fails
            return unsound(self.folder.path.glob("objects/*/*.filez"))
        files = sorted(name for name in names if name.endswith(".file"))
        return unsound(self.folder.object_path(name).with_suffix(".filez") for name in files)

    def has_commit(self, commit: str) -> bool:
        """Whether a commit can still be fetched."""
        if self.folder is not None:
            return self.folder.has_commit(commit, self.deadline)
        assert self.fill is not None
        return self.fill.has(f"objects/{commit[:2]}/{commit[2:]}.commit")

    def timestamp(self, commit: str) -> int | None:
        """Return when a commit says it was made, in seconds since the epoch; None where nobody knows it."""
        for repo in (self.checked.of(self.named), *self.known):
            if (repo.path / "config").exists() and (made := repo.timestamp(commit, self.deadline)):
                return made
        return None

    @contextmanager
    def exported(self) -> Iterator[HttpExport]:
        """Serve it over HTTP for the block; BadInput where its mode does not allow that."""
        if self.through is not None:
            yield self.through
            return
        assert self.folder is not None
        if not self.folder.servable:
            raise BadInput(
                f"the repo {self.named} has mode {self.folder.mode!r}, and over HTTP only an archive repo "
                "can be pulled from",
                hint="--transport delta   works with any mode",
            )
        with http_export(self.folder.path) as export:
            yield export


@contextmanager
def opened_source(
    named: str, folder: Path, cache: Path, trust: Trust, tls: Tls, deadline: Deadline
) -> Iterator[RepoSource]:
    """Open a repo for the block: a folder, relative to ``folder``, or an http(s) URL.

    Raises BadInput where there is none.
    """
    check_utf8(Path(named) if is_url(named) else folder / named)
    checked = CheckedRepo(cache / "repo")
    if not is_url(named):
        repo = open_repo(named, folder)
        yield RepoSource(repo.source, trust, checked, deadline, repo, None)
        return
    upstream = Upstream(named, tls, deadline)
    try:
        upstream.check()
        with _place_in(cache / "remote") as place:
            fill = Downloads(upstream, place)
            with http_export(place, fill) as through:
                yield RepoSource(upstream.url, trust, checked, deadline, None, through, fill)
    finally:
        upstream.close()


@contextmanager
def _place_in(folder: Path) -> Iterator[Path]:
    """Yield a folder for downloads; what composers that are gone left beside it is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_remote(folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        with locked(place / _LOCK, purpose="downloads", what=name):
            yield place


def clear_remote(folder: Path, *, dry: bool = False) -> int:
    """Remove what was downloaded for composers that are gone; return its bytes.  With ``dry`` it stays."""
    freed = 0
    for left in folder.glob("*/"):
        if is_abandoned(left / _LOCK):
            freed += size_of(left)
            if not dry:
                shutil.rmtree(left, ignore_errors=True)
    return freed
