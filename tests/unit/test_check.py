"""The check itself: its parts, its two lanes, and what it prints at its end."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.check.lanes import Outcome, run_in_lanes
from tests.check.parts import PARTS, Part
from tests.check.report import pace, show, too_long, with_tests
from tests.faults.run import EXPERIMENTS

TOP = Path(__file__).resolve().parents[2]
DOCS = (TOP / "docs/testing.md").read_text()


def share(part: Part) -> float:
    return part.share


def part(name: str, seconds: float, *after: str, stops: bool = False, is_vm: bool = True) -> Part:
    return Part(name, seconds, seconds, after=after, stops=stops, is_vm=is_vm)


class Runs:
    """Runs parts in no time; notes their order and how many ran at once, and fails those that it is told."""

    def __init__(self, *failing: str, hold: Callable[[Part], None] = lambda _: None) -> None:
        self.order: list[str] = []
        self._failing, self._hold, self._lock = failing, hold, threading.Lock()

    def __call__(self, part: Part) -> Outcome:
        with self._lock:
            self.order.append(part.name)
        self._hold(part)
        return Outcome(part, 1.0, code=int(part.name in self._failing))


def test_the_longest_comes_first_after_what_stops_all() -> None:
    runs = Runs()
    parts = [part("short", 1), part("long", 9), part("lint", 2, stops=True), part("unit", 3, stops=True)]
    run_in_lanes(parts, 1, runs, share)
    assert runs.order == ["lint", "unit", "long", "short"]


def test_a_part_waits_for_those_that_it_names() -> None:
    runs = Runs()
    parts = [part("disk", 90, "trees"), part("trees", 1), part("other", 2)]
    run_in_lanes(parts, 1, runs, share)
    assert runs.order == ["other", "trees", "disk"]


def test_no_lane_is_idle_while_a_part_can_start() -> None:
    """Two parts meet, each of which waits for the other to run; a third one waits for both."""
    both = threading.Barrier(2, timeout=20)
    runs = Runs(hold=lambda part: None if part.after else void(both.wait()))
    run_in_lanes([part("a", 1), part("b", 1), part("c", 1, "a", "b")], 2, runs, share)
    assert runs.order[2] == "c"


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("failing", "ran", "not_run"),
    [
        ("lint", ["lint"], {"a": "not run: lint failed", "b": "not run: lint failed"}),
        ("a", ["lint", "a"], {"b": "not run: a failed"}),
        ("none", ["lint", "a", "b"], {}),
    ],
)
def test_a_failure_keeps_others_from_running(failing: str, ran: list[str], not_run: dict[str, str]) -> None:
    runs = Runs(failing)
    outcomes = run_in_lanes([part("lint", 1, stops=True), part("a", 9), part("b", 1, "a")], 1, runs, share)
    assert runs.order == ran
    assert {each.part.name: each.why for each in outcomes if each.why} == not_run


JUNIT = """<testsuites><testsuite tests="4"><testcase name="a"/><testcase name="b"><failure message="no"/>
</testcase><testcase name="c"><skipped message="needs root"/></testcase><testcase name="d">
<error message="fixture"/></testcase></testsuite></testsuites>"""


def test_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "a.xml"
    report.write_text(JUNIT)
    outcome = with_tests(Outcome(part("a", 1), 1.0, 1), report)
    assert (outcome.tests, outcome.failed, outcome.skipped) == (4, 2, {"needs root": 1})
    assert with_tests(Outcome(part("lint", 1), 1.0), tmp_path / "none.xml").tests == 0


def outcomes(slower: float) -> list[Outcome]:
    """Return four parts on a machine that emulates ``slower``, one of which took twice its share there."""
    parts = [part("a", 10), part("b", 20), part("c", 30), part("late", 10)]
    seconds = [10 * slower, 20 * slower, 30 * slower, 20 * slower]
    return [Outcome(each, took, tests=2) for each, took in zip(parts, seconds, strict=True)]


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_a_share_is_held_against_the_machines_pace(slower: float) -> None:
    assert pace(outcomes(slower), share) == slower
    assert [each.part.name for each in too_long(outcomes(slower), share)] == ["late"]


def test_a_quick_machine_makes_no_share_smaller() -> None:
    assert pace(outcomes(0.1), share) == 1.0
    assert too_long(outcomes(0.1), share) == []


def shown(told: list[Outcome]) -> list[str]:
    text = io.StringIO()
    show(told, 99.0, share, Console(file=text, width=120, soft_wrap=True))
    return text.getvalue().rstrip().splitlines()


def test_the_last_lines_count_and_name_what_took_too_long() -> None:
    skipping = replace(outcomes(1.0)[0], skipped={"needs root": 1})
    lines = shown([skipping, *outcomes(1.0)[1:]])
    assert lines[-2] == "check: 7 passed, 0 failed, 1 skipped"
    assert lines[-1] == "exceeds its share by half: late 20 s of 10 (this machine takes 1.0 times the shares)"
    assert any("1 skipped: needs root" in line for line in lines)


def test_a_part_without_tests_that_failed_is_counted() -> None:
    lines = shown(
        [Outcome(part("lint", 1, is_vm=False), 1.0, code=2), Outcome(part("b", 1), why="not run: x")]
    )
    assert lines[-2] == "check: 0 passed, 1 failed, 0 skipped"
    assert any("not run: x" in line for line in lines)


def test_every_vm_test_and_experiment_is_in_one_part() -> None:
    named = [test for each in PARTS for test in each.tests if each.is_vm]
    files = [f"tests/vm/{path.name}" for path in (TOP / "tests/vm").glob("test_*.py")]
    experiments = [f"tests/faults/test_experiments.py::test_experiment[{name}]" for name in EXPERIMENTS]
    assert sorted(named) == sorted([*files, *experiments])


@pytest.mark.parametrize("name", [*(each.name for each in PARTS), *EXPERIMENTS])
def test_every_part_and_experiment_is_described(name: str) -> None:
    assert f"`{name}`" in DOCS


def test_days_share_no_seed() -> None:
    for experiment in EXPERIMENTS.values():
        seeds = [seed for day in range(1, 367) for seed in experiment.seeds("check", day)]
        assert len(set(seeds)) == 366 * experiment.check
