"""The cache: an entry that exists is whole, and was made once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from composer.deadline import Deadline
from composer.errors import BadInput
from composer.store.cache import Cache, key_of

# argv: the cache's folder, a log of what was made, and what to do meanwhile.
MAKE = """
import sys, time
from pathlib import Path
from composer.deadline import Deadline
from composer.store.cache import Cache

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    (folder / "content").write_text("whole")
    time.sleep(float(sys.argv[3]))
    return {}

entry, fresh = Cache(Path(sys.argv[1]), "kind").get({"x": 1}, make, Deadline.after(50))
assert (entry.path / "content").read_text() == "whole"
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", "kind")


def make(folder: Path) -> dict[str, Any]:
    (folder / "content").write_text("whole")
    return {"remembered": "this"}


def maker(tmp_path: Path, seconds: float) -> subprocess.Popen[bytes]:
    argv: list[str | Path] = [sys.executable, "-c", MAKE, tmp_path / "cache", tmp_path / "log", str(seconds)]
    return subprocess.Popen(argv)


def test_made_once(cache: Cache, deadline: Deadline) -> None:
    entry, fresh = cache.get({"x": 1}, make, deadline)
    again, fresh_again = cache.get({"x": 1}, make, deadline)
    assert (fresh, fresh_again) == (True, False)
    assert again.path == entry.path
    assert again.info["remembered"] == "this"
    assert again.info["inputs"] == {"x": 1}
    assert (entry.path / "content").read_text() == "whole"
    assert cache.find(entry.key) == again


def test_other_inputs_other_entry(cache: Cache, deadline: Deadline) -> None:
    keys = {cache.get(inputs, make, deadline)[0].key for inputs in ({"x": 1}, {"x": 2}, {"x": "1"}, {"y": 1})}
    assert len(keys) == 4
    assert [entry.key for entry in cache.entries()] == sorted(keys)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_files_are_not_to_be_written_to(cache: Cache, deadline: Deadline) -> None:
    entry, _ = cache.get({"x": 1}, make, deadline)
    assert {file.stat().st_mode & 0o777 for file in entry.path.iterdir()} == {0o444}


def test_made_once_by_two_at_a_time(tmp_path: Path) -> None:
    makers = [maker(tmp_path, 0.3) for _ in range(2)]
    assert [process.wait(30) for process in makers] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_failed_make_leaves_nothing(cache: Cache, deadline: Deadline) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get({"x": 1}, fail, deadline)
    assert list((cache.folder / "kind").iterdir()) == []
    assert cache.get({"x": 1}, make, deadline)[1]


def test_a_killed_makers_leftovers_are_swept(cache: Cache, tmp_path: Path, deadline: Deadline) -> None:
    killed = maker(tmp_path, 60)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    killed.kill()
    killed.wait(5)
    home = cache.folder / "kind"
    assert len(list(home.glob(".*.new"))) == 1
    assert list(cache.entries()) == []
    entry, fresh = cache.get({"x": 1}, make, deadline)
    assert fresh
    assert list(home.iterdir()) == [entry.path]


def test_remove(cache: Cache, deadline: Deadline) -> None:
    entry, _ = cache.get({"x": 1}, make, deadline)
    other, _ = cache.get({"x": 2}, make, deadline)
    with pytest.raises(BadInput, match="2 kind entries"):
        cache.remove("")
    with pytest.raises(BadInput, match="no kind entries"):
        cache.remove("zz")
    assert cache.remove(entry.key[:8]).key == entry.key
    assert cache.find(entry.key) is None
    assert list((cache.folder / "kind").iterdir()) == [other.path]


def test_a_use_is_remembered(cache: Cache, deadline: Deadline) -> None:
    entry, _ = cache.get({"x": 1}, make, deadline)
    before = entry.last_used
    time.sleep(0.02)
    cache.find(entry.key)
    assert entry.last_used > before
    assert entry.bytes > 0


def test_empty(cache: Cache) -> None:
    assert list(cache.entries()) == []
    assert cache.find("0" * 32) is None
    with pytest.raises(BadInput):
        cache.remove("0")
