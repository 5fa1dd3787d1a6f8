"""Files of a remote repo, brought to a folder in which the export looks for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from composer.errors import ComposerError
from composer.repo.paths import is_repo_path, largest
from composer.repo.upstream import Upstream
from composer.store.files import folder_beneath


@dataclass(frozen=True)
class Downloads:
    """Brings files from ``upstream`` to ``folder``, each to its own path and nowhere else."""

    upstream: Upstream
    folder: Path

    def __call__(self, path: str) -> None:
        """Bring a file, unless it is there for good already; remove it if the remote repo has it no more.

        Raises ComposerError for a path that no OSTree repo has, and if the file cannot be brought.
        """
        if not is_repo_path(path):
            raise ComposerError(f"no OSTree repo has a file {path[:200]!r}")
        above, _, name = path.rpartition("/")
        descriptor = folder_beneath(self.folder, above)
        try:
            target = Path(f"/proc/self/fd/{descriptor}") / name
            # An object is what its name says for all time; whoever pulls verifies it.
            if path.startswith(("objects/", "deltas/")) and target.exists():
                return
            if not self.upstream.download(path, target, largest(path)):
                target.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def has(self, path: str) -> bool:
        """Bring a file and return whether the remote repo has it."""
        self(path)
        return (self.folder / path).is_file()
