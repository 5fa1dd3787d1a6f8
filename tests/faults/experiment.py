"""What an experiment is: trials of one promise, each of them decided by its seed."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from tests.vm.ground import Ground

# What is made once, for all the trials of an experiment, may take as long as they do.
SOAK_SECONDS = 24 * 3600.0

# One trial; it raises if the promise was broken.  All chance comes from the generator.
Trial = Callable[[random.Random], None]
Length = Literal["check", "short", "soak"]


@dataclass(frozen=True)
class Experiment:
    """Trials of one promise: how many run in `make check`, in `make soak-short` and in `make soak`."""

    name: str
    check: int
    short: int
    soak: int
    setup: Callable[[Ground], AbstractContextManager[Trial]]
    asroot: bool = False

    def count(self, length: Length) -> int:
        """Return how many trials a run of this length has."""
        return {"check": self.check, "short": self.short, "soak": self.soak}[length]

    def seeds(self, length: Length, day: int) -> range:
        """Return the seeds of a day of the year, 1 to 366; no two days share one."""
        count = self.count(length)
        return range(1 + (day - 1) * count, 1 + day * count)

    def run(self, ground: Ground, seeds: range) -> Iterator[tuple[int, str | None]]:
        """Run trials; yield each seed and, if its trial failed, the end of its traceback."""
        with self.setup(ground) as trial:
            for seed in seeds:
                try:
                    # A seed is no secret, and the same one must give the same trial.
                    trial(random.Random(f"{self.name} {seed}"))
                except Exception:
                    yield seed, "".join(traceback.format_exception(*sys.exc_info())[-3:])
                else:
                    yield seed, None
