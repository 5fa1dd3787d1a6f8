"""Lanes: several parts at a time, the longest first, and no lane idle while a part can start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from tests.check.parts import Part


@dataclass(frozen=True)
class Outcome:
    """What became of a part; ``why`` says why it was not run, or is empty.

    ``skipped`` counts skipped tests by their reason.
    """

    part: Part
    seconds: float = 0.0
    code: int = 0
    tests: int = 0
    failed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether the part ran and succeeded."""
        return self.code == 0 and not self.why


def run_in_lanes(
    parts: Sequence[Part],
    lanes: int,
    run: Callable[[Part], Outcome],
    length: Callable[[Part], float],
) -> list[Outcome]:
    """Run parts, so many at a time; return an outcome of each, in the order of their ends.

    Of the parts that can start, those that stop all come first, in their order, then the longest, by
    ``length`` in seconds.  A part is not run if one that it waits for, or one that stops all, has failed.
    """
    names = {part.name for part in parts}
    waiting = sorted(parts, key=lambda part: (not part.stops, 0.0 if part.stops else -length(part)))
    running: dict[Future[Outcome], Part] = {}
    ended: dict[str, Outcome] = {}

    def ready(part: Part) -> bool:
        return all(name in ended for name in part.after if name in names)

    def why_not(part: Part) -> str:
        failed = [outcome.part for outcome in ended.values() if not outcome.good]
        culprit = next((other for other in failed if other.stops or other.name in part.after), None)
        return f"not run: {culprit.name} failed" if culprit else ""

    with ThreadPoolExecutor(lanes) as threads:
        while waiting or running:
            for part in [part for part in waiting if ready(part)]:
                if why := why_not(part):
                    waiting.remove(part)
                    ended[part.name] = Outcome(part, why=why)
                elif len(running) < lanes:
                    waiting.remove(part)
                    running[threads.submit(run, part)] = part
            if running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    ended[running.pop(future).name] = future.result()
    return list(ended.values())
