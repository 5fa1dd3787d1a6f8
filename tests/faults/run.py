"""`make soak [CASE=NAME] [COUNT=N] [SEED=S] [JOBS=J]`: the experiments at full length, failures with seeds.

With JOBS, so many processes share the seeds, on one ground.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.experiment import Experiment
from tests.faults.guests import EXPERIMENTS as GUESTS
from tests.faults.hostile import EXPERIMENTS as HOSTILE
from tests.faults.images import EXPERIMENTS as IMAGES
from tests.faults.kills import EXPERIMENTS as KILLS
from tests.faults.powercut import EXPERIMENTS as POWERCUT
from tests.faults.products import EXPERIMENTS as PRODUCTS
from tests.faults.reading import EXPERIMENTS as READING
from tests.faults.repos import EXPERIMENTS as REPOS
from tests.faults.room import EXPERIMENTS as ROOM
from tests.faults.templates import EXPERIMENTS as TEMPLATES
from tests.vm.ground import opened_ground

# The longest first, for those who run them two at a time.
_ALL = (*KILLS, *GUESTS, *PRODUCTS, *TEMPLATES, *REPOS, *POWERCUT, *ROOM, *IMAGES, *HOSTILE, *READING)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
_TELL_EVERY_SECONDS = 60.0


def main() -> None:
    """Run the experiments asked for; exit with 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=sorted(EXPERIMENTS))
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--job", type=int, help="which of the jobs this process is, from 0")
    given = parser.parse_args()
    if given.jobs > 1 and given.job is None:
        with tempfile.TemporaryDirectory(prefix="cg", dir="/var/tmp") as folder:
            sys.exit(_run_jobs(given.jobs, Path(folder) / "g"))
    chosen = [EXPERIMENTS[given.case]] if given.case else list(EXPERIMENTS.values())
    sys.exit(1 if _failed(chosen, given) else 0)


def _run_jobs(jobs: int, home: Path) -> int:
    """Make a ground at ``home`` and run the jobs on it; return the exit code."""
    os.environ["COMPOSER_TEST_GROUND"] = str(home)
    with opened_ground(boots=True) as ground:
        assert ground.built
    again = [sys.executable, "-m", "tests.faults.run", *sys.argv[1:], "--job"]
    processes = [subprocess.Popen([*again, str(job)]) for job in range(jobs)]
    ended = [process.wait() for process in processes]
    return 1 if any(ended) else 0


def seeds_of(first: int, count: int, job: int, jobs: int) -> range:
    """Return the seeds of one job of several, which share them evenly."""
    return range(first + count * job // jobs, first + count * (job + 1) // jobs)


def _failed(chosen: list[Experiment], given: argparse.Namespace) -> int:
    """Run experiments, telling how they go; return how many trials failed."""
    failed = 0
    with opened_ground(boots=True) as ground:
        for experiment in chosen:
            if experiment.asroot and os.getuid() != 0:
                print(f"{experiment.name}: left out, for it needs root", flush=True)
                continue
            seeds = seeds_of(given.seed, given.count or experiment.soak, given.job or 0, given.jobs)
            count = len(seeds)
            if count == 0:
                continue
            began, failures = time.monotonic(), 0
            told = began
            for seed, how in experiment.run(ground, seeds):
                if time.monotonic() - told > _TELL_EVERY_SECONDS:
                    told = time.monotonic()
                    done = seed - seeds.start + 1
                    print(f"{experiment.name}: {done} of {count}, {failures} failed", flush=True)
                if how is not None:
                    failures += 1
                    print(f"{experiment.name} SEED={seed} failed:\n{how}", flush=True)
            took = time.monotonic() - began
            print(
                f"{experiment.name}: {count - failures} passed, {failures} failed "
                f"(seeds {seeds[0]} to {seeds[-1]}, {took:.0f} s)",
                flush=True,
            )
            failed += failures
    return failed


if __name__ == "__main__":
    main()
