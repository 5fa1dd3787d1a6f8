"""A short share of every experiment; `make soak` runs the whole."""

from __future__ import annotations

import os
import time

import pytest

from tests.faults.experiment import Experiment, Length
from tests.faults.run import EXPERIMENTS
from tests.vm.ground import Ground

_NEEDS_ROOT = (
    pytest.mark.asroot,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
)
_SHARES = [
    pytest.param(experiment, id=experiment.name, marks=_NEEDS_ROOT if experiment.asroot else ())
    for experiment in EXPERIMENTS.values()
]


def day_of_year() -> int:
    """Return which day's seeds to take: COMPOSER_TEST_DAY or today, 1 to 366."""
    return int(os.environ.get("COMPOSER_TEST_DAY") or time.localtime().tm_yday)


@pytest.mark.parametrize("experiment", _SHARES)
def test_experiment(
    experiment: Experiment, ground: Ground, length: Length, pytestconfig: pytest.Config
) -> None:
    seeds = experiment.seeds(length, day_of_year())
    pytestconfig.get_terminal_writer().line(f"{experiment.name}: seeds {seeds[0]} to {seeds[-1]}")
    failures = {seed: how for seed, how in experiment.run(ground, seeds) if how}
    told = "\n".join(f"SEED={seed}:\n{how}" for seed, how in failures.items())
    assert not failures, told
