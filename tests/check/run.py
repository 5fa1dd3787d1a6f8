"""`make check`, `make test-vm` and `make soak-short`: all parts, in two lanes, and a table at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console

from tests.check.lanes import Outcome, run_in_lanes
from tests.check.parts import PARTS, Part
from tests.check.report import show, with_tests

# A part that takes longer hangs; CI's own end comes after 90 minutes.
_LIMIT_SECONDS = {"check": 2400.0, "short": 7200.0}
# What pytest needs to end its helpers after an interrupt.
_LAST_RITES_SECONDS = 60.0


@dataclass
class Runner:
    """Runs parts, each as a program of its own; ``home`` is where the parts of the tests' user live."""

    venv: Path
    home: Path
    length: str
    day: int
    console: Console
    began: float = field(default_factory=time.monotonic)
    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)
    ending: bool = False

    def share(self, part: Part) -> float:
        """Return the seconds that a part should take."""
        return part.share if self.length == "check" else part.short

    def run(self, part: Part) -> Outcome:
        """Run a part to its end, and print what it said."""
        if part.who == "root" and os.getuid() != 0:
            return Outcome(part, why="not run: needs root")
        self._say(f"{part.name} starts")
        log, report = self.home / "logs" / f"{part.name}.log", self.home / "reports" / f"{part.name}.xml"
        began = time.monotonic()
        with log.open("wb") as output:
            code = self._ended(self._argv(part, report), output.fileno())
        outcome = with_tests(Outcome(part, time.monotonic() - began, code), report)
        with self.lock:
            self.console.rule(
                f"{part.name}: {'passed' if code == 0 else 'failed'} in {outcome.seconds:.0f} s"
            )
            self.console.file.write(log.read_text(errors="replace"))
            self.console.file.flush()
        return outcome

    def end(self) -> None:
        """Interrupt what runs, and kill what does not end by that."""
        with self.lock:
            self.ending = True
            running = list(self.processes)
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            late = time.monotonic() + _LAST_RITES_SECONDS
            while any(process.poll() is None for process in running) and time.monotonic() < late:
                time.sleep(0.1)

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        with self.lock:
            self.console.print(f"[{minutes:3d}:{seconds:02d}] {text}", markup=False)

    def _ended(self, argv: list[str], output: int) -> int:
        """Run a program in a process group of its own; return its exit code."""
        with self.lock:
            if self.ending:
                return 130
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip
            self.processes.add(process)
        try:
            return process.wait(_LIMIT_SECONDS[self.length])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() or 1
        finally:
            with self.lock:
                self.processes.discard(process)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPOSER_TEST_HOME": str(self.home),
            "COMPOSER_TEST_GROUND": str(self.home / "ground"),
            "COMPOSER_TEST_LENGTH": self.length,
            "COMPOSER_TEST_DAY": str(self.day),
        }

    def _argv(self, part: Part, report: Path) -> list[str]:
        if part.command:
            return [str(self.venv) if word == "VENV" else word for word in part.command]
        pytest = ["-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *part.tests]
        if not part.is_vm:
            return [str(self.venv / "bin/python"), *pytest]
        pytest += ["--durations=0", "--durations-min=1"]
        if part.who == "root":
            repo = f"COMPOSER_TEST_REPO={Path.cwd()}/demo/repo"
            return ["env", repo, str(self.venv / "bin/python"), *pytest, "-m", "asroot"]
        return ["scripts/as-user", str(self.venv), "python", *pytest, "-m", "not asroot"]


@contextmanager
def made_home() -> Iterator[Path]:
    """Make the folder in which parts work, with a path that is short enough for unix sockets."""
    home = Path(tempfile.mkdtemp(prefix="composer-test.", dir="/var/tmp"))
    for name in ("logs", "reports"):
        (home / name).mkdir()
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Run the parts asked for; exit with 1 if one failed, with 130 after an interrupt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--vm", action="store_true", help="VM parts alone")
    parser.add_argument("--length", choices=sorted(_LIMIT_SECONDS), default="check")
    parser.add_argument(
        "--part", action="append", choices=[part.name for part in PARTS], help="this one alone"
    )
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--day", type=int, default=time.localtime().tm_yday, help="whose seeds, 1 to 366")
    given = parser.parse_args()
    console = Console(width=120, soft_wrap=True, highlight=False)
    console.print(f"check: {given.lanes} lanes; seeds of day {given.day}, again with DAY={given.day}")
    with made_home() as home:
        runner = Runner(given.venv.absolute(), home, given.length, given.day, console)

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            runner.end()  # the lanes' threads wait for their programs
            raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        try:
            outcomes = run_in_lanes(_chosen(given), given.lanes, runner.run, runner.share)
        except KeyboardInterrupt:
            sys.exit(130)
        show(outcomes, time.monotonic() - runner.began, runner.share, console)
    needless = [each for each in outcomes if each.why.endswith("needs root")]
    sys.exit(0 if all(each.good or each in needless for each in outcomes) else 1)


def _chosen(given: argparse.Namespace) -> list[Part]:
    """Return the parts that were asked for, and those that they need."""
    if given.part:
        wanted = set(given.part)
        for part in reversed(PARTS):  # each stands behind those that it needs
            wanted |= set(part.after) if part.name in wanted else set()
        return [part for part in PARTS if part.name in wanted]
    return [part for part in PARTS if part.is_vm or part.name == "trees" or not given.vm]


if __name__ == "__main__":
    main()
