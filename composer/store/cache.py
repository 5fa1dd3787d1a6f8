"""A content-addressed cache: what is made once from given inputs is found again by their hash.

An entry is a folder ``cache/KIND/KEY``.  It is made beside its place under the key's lock, fsynced,
and renamed, so an entry that exists is whole.  Many jobs share its files, so these are 0444 unless a
kind has reasons of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.deadline import Deadline
from composer.errors import BadInput
from composer.store.folders import fsync_path, size_of
from composer.store.locks import is_locked, locked, remove_when_free

_INFO = "info.json"
_KEY_LENGTH = 32


@dataclass(frozen=True)
class Entry:
    """One thing in the cache."""

    path: Path
    key: str
    info: dict[str, Any]

    @property
    def bytes(self) -> int:
        """What it takes on the disk, in bytes."""
        return size_of(self.path)

    @property
    def last_used(self) -> float:
        """When it was last asked for, in seconds since the epoch."""
        return (self.path / _INFO).stat().st_mtime


def key_of(inputs: dict[str, Any]) -> str:
    """Return the key of an entry: the hash of everything that goes into it."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True)
class Cache:
    """All entries of one kind below one folder."""

    folder: Path
    kind: str
    mode: int = 0o444

    @property
    def _home(self) -> Path:
        return self.folder / self.kind

    def find(self, key: str) -> Entry | None:
        """Return the entry, or None; finding it counts as a use."""
        path = self._home / key
        try:
            info = json.loads((path / _INFO).read_text())
            os.utime(path / _INFO)
        except FileNotFoundError:  # never made, or removed meanwhile
            return None
        return Entry(path, key, info)

    def get(
        self, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]], deadline: Deadline
    ) -> tuple[Entry, bool]:
        """Return the entry made from ``inputs`` and whether it was made just now.

        ``make`` fills the folder that it is given and returns what to remember about it.
        """
        key = key_of(inputs)
        if entry := self.find(key):
            return entry, False
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._home / f".{key}.lock"
        with locked(lock, purpose=f"making {self.kind}", what=f"{self.kind} {key}", wait=deadline):
            if entry := self.find(key):
                return entry, False
            self._sweep(key)
            self._make(key, inputs, make)
        entry = self.find(key)
        assert entry is not None
        return entry, True

    def _sweep(self, key: str) -> None:
        """Remove what a killed maker of this key left; we hold its lock, so nobody is at work on it."""
        for left in self._home.glob(f".{key}.*.new"):
            shutil.rmtree(left, ignore_errors=True)

    def _make(self, key: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> None:
        new = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".new", dir=self._home))
        try:
            info = {"inputs": inputs, "created": time.time(), **make(new)}
            (new / _INFO).write_text(json.dumps(info, indent=1, sort_keys=True))
            for file in new.iterdir():
                file.chmod(self.mode)
                fsync_path(file)
            fsync_path(new)
            new.rename(self._home / key)
            fsync_path(self._home)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, by key."""
        if not self._home.is_dir():
            return
        for path in sorted(self._home.iterdir()):
            info = path / _INFO
            if not path.name.startswith(".") and info.is_file():
                yield Entry(path, path.name, json.loads(info.read_text()))

    def leftovers(self, *, remove: bool) -> Iterator[tuple[Path, int]]:
        """Yield what killed makers left, with its size in bytes; gone afterwards if ``remove`` is given."""
        if not self._home.is_dir():
            return
        for left in sorted(self._home.glob(".*.new")):
            lock = self._home / f".{left.name.split('.')[1]}.lock"
            if not is_locked(lock):
                yield left, size_of(left)
                if remove:
                    shutil.rmtree(left, ignore_errors=True)
        for lock in self._home.glob(".*.lock") if remove else ():
            remove_when_free(lock, Deadline.after(0.1))

    def remove(self, prefix: str) -> Entry:
        """Remove the one entry whose key begins with ``prefix``; BadInput when none or many do."""
        found = [entry for entry in self.entries() if entry.key.startswith(prefix)]
        if len(found) != 1:
            count = "no" if not found else str(len(found))
            raise BadInput(f"{count} {self.kind} entries have a key that begins with {prefix!r}")
        # Renamed first: a folder being removed must not be found as an entry.
        doomed = found[0].path.with_name(f".{found[0].key}.gone.new")
        found[0].path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)  # a sweep beside us may be faster
        return found[0]
