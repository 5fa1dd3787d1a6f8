"""A short share of every experiment; `make soak` runs the whole."""

from __future__ import annotations

import pytest

from tests.faults.ground import Experiment, Ground
from tests.faults.run import EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.name)
def test_experiment(experiment: Experiment, ground: Ground) -> None:
    failures = {seed: how for seed, how in experiment.run(ground, experiment.check, 1) if how}
    told = "\n".join(f"SEED={seed}:\n{how}" for seed, how in failures.items())
    assert not failures, told
