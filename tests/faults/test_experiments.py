"""A short share of every experiment; `make soak` runs the whole."""

from __future__ import annotations

import os

import pytest

from tests.faults.ground import Experiment, Ground
from tests.faults.run import EXPERIMENTS

_NEEDS_ROOT = (
    pytest.mark.asroot,
    pytest.mark.skipif(os.getuid() != 0, reason="run by root alone; make check runs it so where it can"),
)
_SHARES = [
    pytest.param(experiment, id=experiment.name, marks=_NEEDS_ROOT if experiment.asroot else ())
    for experiment in EXPERIMENTS.values()
]


@pytest.mark.parametrize("experiment", _SHARES)
def test_experiment(experiment: Experiment, ground: Ground) -> None:
    failures = {seed: how for seed, how in experiment.run(ground, experiment.check, 1) if how}
    told = "\n".join(f"SEED={seed}:\n{how}" for seed, how in failures.items())
    assert not failures, told
