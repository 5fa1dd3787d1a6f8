"""What the check prints at its end: its parts, the count of its tests, and whether a part took too long."""

from __future__ import annotations

import statistics
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.check.lanes import Outcome
from tests.check.parts import Part

_TOO_LONG = 1.5


def with_tests(outcome: Outcome, report: Path) -> Outcome:
    """Return an outcome with the tests that pytest's JUnit file names; without such a file, as it is."""
    if not report.exists():
        return outcome
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    reasons = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
    return replace(outcome, tests=len(cases), failed=len(failed), skipped=dict(Counter(reasons)))


def pace(outcomes: Sequence[Outcome], length: Callable[[Part], float]) -> float:
    """Return how many times slower than the table's machine this one emulates, by the median; at least 1."""
    ratios = [
        outcome.seconds / length(outcome.part) for outcome in outcomes if outcome.part.is_vm and outcome.good
    ]
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


def too_long(outcomes: Sequence[Outcome], length: Callable[[Part], float]) -> list[Outcome]:
    """Return the outcomes that exceed their share by half, on a machine of this pace."""
    slower = pace(outcomes, length)
    return [each for each in outcomes if each.seconds > _TOO_LONG * slower * length(each.part)]


def show(
    outcomes: Sequence[Outcome], seconds: float, length: Callable[[Part], float], console: Console
) -> None:
    """Print the table and the closing lines; ``seconds`` is what all of it took."""
    table = Table(title="make check", box=None, title_justify="left", pad_edge=False)
    for name in ("part", "seconds", "share", "tests"):
        table.add_column(name, justify="left" if name == "part" else "right")
    table.add_column("failed, skipped and why")
    for each in outcomes:
        failed = "failed" if each.code and not each.failed else f"{each.failed} failed" if each.failed else ""
        skipped = [f"{count} skipped: {why}" for why, count in each.skipped.items()]
        told = "; ".join(filter(None, [each.why, failed, *skipped]))
        ran = "" if each.why else f"{each.seconds:.0f}"
        table.add_row(each.part.name, ran, f"{length(each.part):.0f}", str(each.tests or ""), told)
    table.add_row("all", f"{seconds:.0f}")
    console.print(table)
    failed_tests = sum(each.failed or bool(each.code) for each in outcomes)
    skipped_tests = sum(sum(each.skipped.values()) for each in outcomes)
    passed = sum(each.tests for each in outcomes) - sum(each.failed for each in outcomes) - skipped_tests
    console.print(f"check: {passed} passed, {failed_tests} failed, {skipped_tests} skipped")
    slower = f"this machine takes {pace(outcomes, length):.1f} times the shares"
    late = [
        f"{each.part.name} {each.seconds:.0f} s of {length(each.part):.0f}"
        for each in too_long(outcomes, length)
    ]
    said = f"exceeds its share by half: {', '.join(late)}" if late else "no part exceeds its share by half"
    console.print(f"{said} ({slower})")
