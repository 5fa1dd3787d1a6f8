"""The clock of a clone on a busy host: set by what came quickest, and set again until it is right."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import ShellFailed
from composer.helper.lease import _set_clock
from composer.helper.shell import Answer
from composer.resources import bootstrap_file

# Takes each -s to be late by a part of a second, as on a busy host; tells the time that was set.
_SLOW_DATE = """#!/bin/sh
uptime_ms() { read -r up _ </proc/uptime; h=${up#*.}; echo "$((${up%.*} * 1000 + ${h#0} * 10))"; }
case "$1" in
    -s)
        set_to=$(echo "${2#@}" | tr -d .)
        sleep LATE
        echo "$((set_to - $(uptime_ms)))" >"$0.boot"
        ;;
    -r) read -r boot <"$0.boot"; echo "$((boot + $(uptime_ms)))" ;;
esac
"""


class FakeShell:
    """A guest that booted at a known time and whose answers take a while."""

    def __init__(self, boot: float, delays: Sequence[float], code: int = 0) -> None:
        self.boot, self.delays, self.code = boot, delays, code
        self.told: list[int] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
        silence: float | None = None,
    ) -> Answer:
        assert stdin == bootstrap_file("guest/clock").read_bytes()
        if argv[2] == "set":
            self.told.append(int(argv[3]))
            return Answer(self.code, b"", b"why")
        assert on_stdout is not None
        for delay in self.delays:
            uptime = int((time.time() - self.boot) * 1000)
            time.sleep(delay)
            on_stdout(f"{uptime}\n".encode())
        return Answer(0, b"", b"")


def test_the_quickest_answer_tells_when_the_boot_was() -> None:
    guest = FakeShell(time.time() - 500, (0.3, 0.0, 0.0, 0.0, 0.2))
    _set_clock(guest, Deadline.after(5))
    (told,) = guest.told
    assert abs(told - guest.boot * 1000) < 50


@pytest.mark.parametrize("guest", [FakeShell(0, ()), FakeShell(0, (0.0,), code=1)])
def test_a_clock_that_cannot_be_set_is_told(guest: FakeShell) -> None:
    with pytest.raises(ShellFailed):
        _set_clock(guest, Deadline.after(5))


@pytest.mark.parametrize("late", ["0", "0.3"])
def test_a_date_that_starts_late_is_made_up_for(tmp_path: Path, late: str) -> None:
    date = tmp_path / "date"
    date.write_text(_SLOW_DATE.replace("LATE", late))
    date.chmod(0o755)
    boot = int((time.time() - 700) * 1000)
    done = subprocess.run(
        ["sh", bootstrap_file("guest/clock"), "set", str(boot)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert abs(int((tmp_path / "date.boot").read_text()) - boot) < 200
