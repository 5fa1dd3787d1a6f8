"""`make soak [CASE=NAME] [COUNT=N] [SEED=S]`: the experiments at full length, each failure with its seed."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.faults.ground import Ground
from tests.faults.guests import EXPERIMENTS as GUESTS
from tests.faults.hostile import EXPERIMENTS as HOSTILE
from tests.faults.kills import EXPERIMENTS as KILLS
from tests.faults.powercut import EXPERIMENTS as POWERCUT
from tests.faults.products import EXPERIMENTS as PRODUCTS
from tests.faults.repos import EXPERIMENTS as REPOS
from tests.faults.room import EXPERIMENTS as ROOM
from tests.faults.templates import EXPERIMENTS as TEMPLATES
from tests.vm.place import LEAN_REF, made_place

# The longest first, for those who run them two at a time.
_ALL = (*KILLS, *GUESTS, *PRODUCTS, *TEMPLATES, *REPOS, *POWERCUT, *ROOM, *HOSTILE)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
_TELL_EVERY_SECONDS = 60.0


def main() -> None:
    """Run the experiments asked for; exit with 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=sorted(EXPERIMENTS))
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chosen = [EXPERIMENTS[given.case]] if given.case else list(EXPERIMENTS.values())
    failed = 0
    with made_place() as place:
        ground = Ground(place, LEAN_REF)
        for experiment in chosen:
            if experiment.asroot and os.getuid() != 0:
                print(f"{experiment.name}: left out, for it needs root", flush=True)
                continue
            count = given.count or experiment.soak
            began, failures = time.monotonic(), 0
            told = began
            for seed, how in experiment.run(ground, count, given.seed):
                if time.monotonic() - told > _TELL_EVERY_SECONDS:
                    told = time.monotonic()
                    done = seed - given.seed + 1
                    print(f"{experiment.name}: {done} of {count}, {failures} failed", flush=True)
                if how is not None:
                    failures += 1
                    print(f"{experiment.name} SEED={seed} failed:\n{how}", flush=True)
            took = time.monotonic() - began
            print(
                f"{experiment.name}: {count - failures} passed, {failures} failed "
                f"(seeds {given.seed} to {given.seed + count - 1}, {took:.0f} s)",
                flush=True,
            )
            failed += failures
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
