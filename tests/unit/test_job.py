"""Jobs for the helper: what the dispatcher says becomes events, whatever a hostile guest says does not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, GuestStepFailed
from composer.events import Reporter, Tape
from composer.helper.bootstrap import BootstrapImage
from composer.helper.job import Job, JobResult, check_tools, run_job
from composer.helper.shell import Answer
from composer.store.cache import Entry

JOB = Job(("partition", "report"), {"layout": b"label: gpt\n", "files/0000/content": bytes(range(256))})
RESULT = b'{"event":"result","values":[["deployment","abc 0 demo - -"],["kargs","a=\\"b\\""]]}\n'
GOOD = (
    b'{"event":"start","step":"partition"}\n{"event":"end","step":"partition","ms":1234}\n'
    b'{"event":"start","step":"report"}\n{"event":"end","step":"report","ms":5}\n' + RESULT
)


class RecordedShell:
    """Plays what a guest once wrote, in pieces."""

    def __init__(self, stdout: bytes, code: int = 0, stderr: bytes = b"", piece: int = 7) -> None:
        self._stdout, self._code, self._stderr, self._piece = stdout, code, stderr, piece
        self.argv: Sequence[str] = ()
        self.stdin = b""

    def interact(self) -> int:
        raise AssertionError("nobody sits at a terminal")

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
        silence: float | None = None,
    ) -> Answer:
        self.argv, self.stdin = argv, stdin
        for start in range(0, len(self._stdout), self._piece):
            if on_stdout:
                on_stdout(self._stdout[start : start + self._piece])
        return Answer(self._code, self._stdout, self._stderr)


def play(shell: RecordedShell, tape: Tape | None = None) -> JobResult:
    return run_job(shell, JOB, Reporter(tape or Tape()), Deadline.after(5))


def test_events_and_values() -> None:
    tape = Tape()
    result = play(RecordedShell(GOOD), tape)
    assert [(event.kind, event.name) for event in tape.events] == [
        ("phase-start", "partition"),
        ("phase-end", "partition"),
        ("phase-start", "report"),
        ("phase-end", "report"),
    ]
    assert tape.texts("phase-start")[0] == "writing the partition table"
    assert result.seconds == {"partition": 1.234, "report": 0.005}
    assert result.one("deployment") == "abc 0 demo - -"
    assert result.all("kargs") == ['a="b"']
    assert result.all("remote") == []


@pytest.mark.parametrize("key", ["remote", "twice"])
def test_one_value_is_wanted(key: str) -> None:
    two = b'{"event":"result","values":[["twice","1"],["twice","2"]]}\n'
    with pytest.raises(GuestStepFailed, match="instead of one"):
        play(RecordedShell(two)).one(key)


def test_steps_and_data_travel_in_one_archive() -> None:
    shell = RecordedShell(GOOD)
    play(shell)
    with tarfile.open(fileobj=io.BytesIO(shell.stdin)) as archive:
        names = archive.getnames()
        content = archive.extractfile("data/files/0000/content")
        steps = archive.extractfile("steps.list")
        assert content is not None
        assert steps is not None
        assert content.read() == bytes(range(256))
        assert steps.read() == b"partition\nreport\n"
    assert {"dispatch", "lib.sh", "steps/partition.sh", "steps/report.sh", "data/layout"} <= set(names)
    assert b"label: gpt" not in " ".join(shell.argv).encode()


def test_failed_step() -> None:
    failed = {"event": "failed", "step": "report", "why": "no room", "log": "line 1\nline 2"}
    with pytest.raises(GuestStepFailed) as caught:
        play(RecordedShell(json.dumps(failed).encode() + b"\n", code=1))
    assert caught.value.step == "report"
    assert caught.value.message == "step 'report' in the helper failed: no room"
    assert caught.value.detail == "line 1\nline 2"


def test_dying_dispatcher() -> None:
    started = b'{"event":"start","step":"report"}\n'
    with pytest.raises(GuestStepFailed, match=r"'report'.* ended with 137") as caught:
        play(RecordedShell(started, code=137, stderr=b"Killed\xff"))
    assert "Killed" in (caught.value.detail or "")
    with pytest.raises(GuestStepFailed, match="'dispatch'"):
        play(RecordedShell(b"", code=2, stderr=b"tar: short read"))
    with pytest.raises(GuestStepFailed, match="ended with 0"):
        play(RecordedShell(started))
    with pytest.raises(GuestStepFailed):
        play(RecordedShell(GOOD, code=1))


HOSTILE = {
    "noise": b"\xff\xfe\x00\x1b[2J\n",
    "no object": b'[1]\n"x"\n1\nnull\n{\n}\n\n',
    "unknown event": b'{"event":"reboot","step":"report"}\n{"event":{},"step":"report"}\n{}\n',
    "names that are none": b'{"event":"start","step":"../../x"}\n{"event":"start","step":"a b"}\n'
    b'{"event":"start","step":null}\n{"event":"start","step":"' + b"a" * 100 + b'"}\n',
    "times that are none": b'{"event":"end","step":"report","ms":"5"}\n{"event":"end","step":"report"}\n'
    b'{"event":"end","step":"report","ms":1e999}\n{"event":"end","step":"report","ms":[]}\n',
    "values that are none": b'{"event":"result","values":7}\n{"event":"result","values":{"a":1}}\n',
    "steps of no job": b'{"event":"start","step":"deploy"}\n{"event":"end","step":"deploy","ms":1}\n',
    "an end without a start": b'{"event":"end","step":"report","ms":5}\n',
    "no number": b'{"event":"start","step":"report"}\n{"event":"end","step":"report","ms":true}\n',
    "endless line": b"x" * 600000 + b"\n",
    "endless text": b'{"event":"start","step":"' + b"x" * 600000 + b'"}\n',
}


@pytest.mark.parametrize("noise", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_lines_are_dropped(noise: bytes) -> None:
    tape = Tape()
    play(RecordedShell(noise + GOOD, piece=8192), tape)
    assert len(tape.events) == 4


def test_each_step_starts_and_ends_once_and_the_first_result_counts() -> None:
    tape = Tape()
    result = play(RecordedShell(GOOD * 1000, piece=8192), tape)
    assert len(tape.events) == 4
    assert result.one("deployment") == "abc 0 demo - -"


@pytest.mark.parametrize(
    "line", [b"\n", b'{"event":"beat","step":""}\n', b'{"event":"result","values":[]}\n']
)
def test_a_guest_that_talks_without_end_is_ended(line: bytes) -> None:
    with pytest.raises(GuestStepFailed, match="talks without end"):
        play(RecordedShell(line * (2**23 // len(line)), piece=2**16))


def test_pairs_that_are_none_are_dropped() -> None:
    values = b'{"event":"result","values":[1,["a"],["a","b","c"],["k","v"],[1,2],{}]}\n'
    assert play(RecordedShell(values)).values == (("k", "v"), ("1", "2"))


BREAKING = {
    "deep": b"[" * 100000 + b"\n",
    "long ago": b'{"event":"end","step":"report","ms":1' + b"0" * 400 + b"}\n",
}


@pytest.mark.parametrize("noise", BREAKING.values(), ids=BREAKING.keys())
def test_hostile_lines_that_break_the_reader(noise: bytes) -> None:
    play(RecordedShell(noise + GOOD, piece=8192))


def test_step_with_a_newline() -> None:
    tape = Tape()
    play(RecordedShell(b'{"event":"start","step":"report\\n"}\n' + GOOD), tape)
    assert len(tape.events) == 4


def test_a_line_without_end_takes_no_memory() -> None:
    """64 MiB in pieces: quadratic or unbounded reading would not be through in time."""
    began = Deadline.after(5)
    with pytest.raises(GuestStepFailed):
        play(RecordedShell(b"x" * 2**26, piece=2**16))
    assert not began.expired


@given(lines=st.lists(st.binary(max_size=80), max_size=8), code=st.integers(0, 2))
def test_any_output_is_a_result_or_an_error(lines: list[bytes], code: int) -> None:
    try:
        play(RecordedShell(b"\n".join(lines), code=code))
    except ComposerError:
        return
    raise AssertionError("a job without a result is no result")


def test_check_tools(tmp_path: Path) -> None:
    def image(*programs: str) -> BootstrapImage:
        return BootstrapImage(Entry(tmp_path, "k", {"commit": "a" * 64, "programs": programs}), fresh=False)

    check_tools(("partition", "format-ext4"), image("sfdisk", "mkfs.ext4"))
    with pytest.raises(BadInput) as caught:
        check_tools(("partition", "format-ext4"), image("ls"))
    assert "sfdisk (step partition), mkfs.ext4 (step format-ext4)" in caught.value.message
