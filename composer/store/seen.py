"""The newest commit that was seen of each ref of a repo, so that a first build takes no older one.

A disk knows its own commit, and an update compares with that.  A first build has no disk: without this memory
a server that was broken into could offer an old, signed commit with known holes.  It lies apart from the
cache, so that clearing the cache does not clear it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from composer.store.files import read_file
from composer.store.folders import written_beside

_LARGEST = 2**16


@dataclass(frozen=True)
class SeenCommit:
    """A commit, and when it says that it was made, in seconds since the epoch."""

    commit: str
    timestamp: int


@dataclass(frozen=True)
class Seen:
    """What was seen, a file for each repo and ref in ``folder``, which need not exist."""

    folder: Path

    def newest(self, repo: str, ref: str) -> SeenCommit | None:
        """Return the newest commit that was noted of a ref; None if there is none, or the note is damaged."""
        try:
            said = json.loads(read_file(self._path(repo, ref), _LARGEST))
            return SeenCommit(str(said["commit"]), int(said["timestamp"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def note(self, repo: str, ref: str, seen: SeenCommit) -> None:
        """Note a commit in the place of what was noted of its ref."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_beside(self._path(repo, ref), 0o600) as new:
            said = {"repo": repo, "ref": ref, "commit": seen.commit, "timestamp": seen.timestamp}
            new.write_text(json.dumps(said))

    def _path(self, repo: str, ref: str) -> Path:
        return self.folder / f"{hashlib.sha256(f'{repo} {ref}'.encode()).hexdigest()[:32]}.json"
