"""What experiments stand on: a place, a repo and a disk of their own, and trials by seed."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.vm.place import Built, Place, Repo, build_disk, copy_repo, write_recipe

# What is made once, for all the trials of an experiment, may take as long as they do.
SOAK_SECONDS = 24 * 3600.0

# One trial; it raises where the promise was broken.  All chance comes from the generator.
Trial = Callable[[random.Random], None]


class Ground:
    """Where experiments happen; what only some of them need is made when it is first asked for.

    ``tree`` is the ref of the tests' repo whose two commits they work with.
    """

    def __init__(self, place: Place, tree: str) -> None:
        self.place = place
        self._tree = tree

    @cached_property
    def repo(self) -> Repo:
        """A repo of our own."""
        return copy_repo(self.place, self._tree)

    @cached_property
    def recipe(self) -> Path:
        """The tests' recipe."""
        return write_recipe(self.place)

    @cached_property
    def built(self) -> Built:
        """A disk of the first commit."""
        return build_disk(self.place, self.repo, self.recipe)


@dataclass(frozen=True)
class Experiment:
    """Trials of one promise: how many in `make check`, how many in `make soak`."""

    name: str
    check: int
    soak: int
    setup: Callable[[Ground], AbstractContextManager[Trial]]
    asroot: bool = False

    def run(self, ground: Ground, count: int, first_seed: int) -> Iterator[tuple[int, str | None]]:
        """Run trials; yield each seed and, where it failed, how."""
        with self.setup(ground) as trial:
            for seed in range(first_seed, first_seed + count):
                try:
                    # A seed is no secret, and the same one must give the same trial.
                    trial(random.Random(f"{self.name} {seed}"))
                except Exception:
                    yield seed, "".join(traceback.format_exception(*sys.exc_info())[-3:])
                else:
                    yield seed, None
