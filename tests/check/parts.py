"""The parts of `make check` and `make soak-short`: what each runs, what it waits for, how long it takes.

A VM part is a file of tests/vm or the experiments of one file of tests/faults.  docs/testing.md says what
each of them guards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Who runs a part: the caller, the tests' ordinary user, or root and nobody else.
Who = Literal["caller", "user", "root"]


@dataclass(frozen=True)
class Part:
    """A part of the check: one program in one lane.

    ``share`` and ``short``: the seconds that it takes in the check and in soak-short on the machine of
    docs/testing.md, while the other lane is busy too.  ``command`` has the word VENV for the folder of the
    environment; a part without one runs ``tests`` by pytest.  ``after`` names the parts that must have
    succeeded before it starts.  If a ``stops`` part fails, nothing more is started.
    """

    name: str
    share: float
    short: float
    tests: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    who: Who = "caller"
    after: tuple[str, ...] = ()
    stops: bool = False
    is_vm: bool = False


def _vm(name: str, share: float, short: float, who: Who = "user") -> Part:
    return Part(name, share, short, (f"tests/vm/test_{name}.py",), who=who, after=("build",), is_vm=True)


def _experiments(name: str, share: float, short: float, *experiments: str, who: Who = "user") -> Part:
    tests = tuple(f"tests/faults/test_experiments.py::test_experiment[{each}]" for each in experiments)
    return Part(name, share, short, tests, who=who, after=("build",), is_vm=True)


PARTS = (
    Part("lint", 5, 5, command=("scripts/lint", "VENV"), stops=True),
    Part("trees", 5, 5, command=("scripts/test-repo",), stops=True),
    # Many of these tests wait for a program, and the build beside them for its helper.
    Part("unit", 80, 80, ("-n", "3", "tests/unit"), stops=True),
    # Makes the disk that the others share.
    Part(
        "build", 100, 100, ("tests/vm/test_build.py",), who="user", after=("trees",), stops=True, is_vm=True
    ),
    _vm("field", 140, 140),
    _vm("flow", 135, 230),
    _vm("product", 50, 50),
    _vm("transports", 105, 105),
    _vm("helper", 70, 70),
    _vm("life", 40, 40),
    _vm("root", 60, 90, who="root"),
    _experiments("kills", 70, 600, "killed-update", "eight-composers"),
    _experiments("guests", 140, 350, "guest-deaths"),
    _experiments("products", 65, 300, "identity", "secrets"),
    _experiments(
        "templates",
        80,
        170,
        "template-restores",
        "template-crowd",
        "template-damaged",
        "template-killed",
    ),
    _experiments("repos", 35, 150, "damaged-repo", "forged-commit", "hostile-request"),
    _experiments("powercut", 45, 120, "power-cut"),
    _experiments("room", 85, 350, "no-space", who="root"),
    _experiments("images", 20, 45, "flatten-errors"),
    _experiments("hostile", 10, 30, "hostile-header", "header-fuzz", "hostile-recipe"),
    _experiments(
        "reading", 5, 20, "hostile-manifest", "hostile-answers", "hostile-report", "hostile-upstream"
    ),
)
