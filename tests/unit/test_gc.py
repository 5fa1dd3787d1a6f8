"""`composer gc --older-than`: what lay unused goes, what was used stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from composer.compose.gc import collect
from composer.compose.workshop import Workshop
from composer.deadline import Deadline
from composer.events import Tape
from composer.export import delta
from composer.helper import bootstrap
from composer.repo.checked import CheckedRepo
from composer.repo.local import open_repo
from composer.repo.signatures import Trust

_DAY = 86400


def test_what_lay_unused_goes(
    tiny_repo: Path, workshop: Workshop, tape: Tape, tmp_path: Path, deadline: Deadline
) -> None:
    folders = workshop.folders
    entries = {}
    for cache in (bootstrap.cache_of(folders.cache), delta.cache_of(folders.cache)):
        for name in ("old", "new"):
            entry, _ = cache.get({"x": name}, lambda _: {}, deadline)
            entries[cache.kind, name] = entry.path
            if name == "old":
                long_ago = time.time() - 20 * _DAY
                os.utime(entry.path / "info.json", (long_ago, long_ago))
    source = open_repo(str(tiny_repo), tmp_path)
    checked = CheckedRepo(folders.cache / "repo")
    for ref in ("os/good", "os/no-kernel"):
        checked.fetch("x", f"file://{tiny_repo}", ref, source.resolve(ref, deadline), Trust(), deadline)
    for pattern in ("os/good", f"pinned/{source.resolve('os/good', deadline)}"):
        (old,) = checked.path.glob(f"refs/remotes/*/{pattern}")
        os.utime(old, (0, 0))
    log = folders.cache / "logs" / "old.log"
    log.parent.mkdir()
    log.touch()
    os.utime(log, (0, 0))

    def run(*, dry: bool) -> None:
        collect(workshop, 14, dry=dry)

    run(dry=True)
    told = tape.texts("note")
    assert len(told) == 5
    assert all(path.exists() for path in entries.values())
    assert log.exists()
    run(dry=False)
    assert {key for key, path in entries.items() if path.exists()} == {("bootstrap", "new"), ("delta", "new")}
    assert tape.texts("note") == told * 2
    assert not log.exists()
    own = checked.of("x")
    assert not own.has_commit(source.resolve("os/good", deadline), deadline)
    assert own.has_commit(source.resolve("os/no-kernel", deadline), deadline)


@pytest.mark.parametrize("way", ["by its checksum", "before its ref moved on"])
def test_a_commit_that_was_just_fetched_stays(
    tiny_repo: Path, workshop: Workshop, tmp_path: Path, deadline: Deadline, way: str
) -> None:
    """A job may be at work with it."""
    source, checked = open_repo(str(tiny_repo), tmp_path), CheckedRepo(workshop.folders.cache / "repo")
    commit = source.resolve("os/good", deadline)
    ref = commit if way == "by its checksum" else "os/good"
    checked.fetch("x", f"file://{tiny_repo}", ref, commit, Trust(), deadline)
    for moved in checked.path.glob("refs/remotes/*/os/good"):
        moved.unlink()
    collect(workshop, 14)
    assert checked.of("x").has_commit(commit, deadline)
