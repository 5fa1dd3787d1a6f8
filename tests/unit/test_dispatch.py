"""The guest's own dispatcher, run here with steps that do no harm: every line it writes is good JSON."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from composer.resources import bootstrap_file

SHELLS = [
    pytest.param(["sh"], id="sh"),
    pytest.param(["busybox", "sh"], id="busybox"),
    pytest.param(["bash", "--posix"], id="bash"),
]
TRICKY = "a \"quoted\" \\back\\slash\\n 'x' $HOME `id` %s %n {} <&> Grüße 日本 😀"


@dataclass
class Ran:
    """What a job came to: its exit code, its events, and where it ran."""

    code: int
    events: list[dict[str, Any]]
    folder: Path
    values: list[list[str]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def dispatched(
    folder: Path,
    steps: Mapping[str, str],
    data: Mapping[str, bytes] | None = None,
    shell: list[str] | None = None,
) -> Ran:
    """Run the dispatcher in a folder laid out as in the helper."""
    job = folder / "job"
    (job / "steps").mkdir(parents=True)
    for name in ("dispatch", "lib.sh"):
        shutil.copy(bootstrap_file("guest") / name, job / name)
    for name, text in steps.items():
        (job / "steps" / f"{name}.sh").write_text(text)
    (job / "steps.list").write_text("".join(f"{name}\n" for name in steps))
    for name, content in (data or {}).items():
        (job / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (job / "data" / name).write_bytes(content)
    argv = [*(shell or ["sh"]), "./dispatch"]
    done = subprocess.run(
        argv, cwd=job, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=20
    )
    events = [json.loads(line.decode("utf-8", "replace")) for line in done.stdout.splitlines()]
    return Ran(done.returncode, events, job, events[-1].get("values", []) if events else [])


def step(text: str) -> str:
    return f'. "$JOB/lib.sh"\n{text}\n'


@pytest.mark.parametrize("shell", SHELLS)
def test_steps_run_in_order(tmp_path: Path, shell: list[str]) -> None:
    ran = dispatched(
        tmp_path,
        {"one": step('result key "first"; echo noise; echo noise >&2'), "two": step('result key "second"')},
        shell=shell,
    )
    assert ran.code == 0
    assert [(event["event"], event.get("step")) for event in ran.events] == [
        ("start", "one"),
        ("end", "one"),
        ("start", "two"),
        ("end", "two"),
        ("result", None),
    ]
    assert all(
        isinstance(event["ms"], int) and event["ms"] >= 0 for event in ran.events if event["event"] == "end"
    )
    assert ran.values == [["key", "first"], ["key", "second"]]


def test_no_results(tmp_path: Path) -> None:
    assert dispatched(tmp_path, {"one": step("true")}).values == []


@pytest.mark.parametrize("shell", SHELLS)
def test_values_arrive_as_they_are(tmp_path: Path, shell: list[str]) -> None:
    tab = "a\tb\t\\t"
    ran = dispatched(
        tmp_path,
        {"one": step('result tricky "$(param tricky)"; result tab "$(param tab)"; result empty ""')},
        {"tricky": TRICKY.encode(), "tab": tab.encode()},
        shell,
    )
    assert ran.values == [["tricky", TRICKY], ["tab", tab], ["empty", ""]]


@pytest.mark.parametrize("shell", SHELLS)
def test_failing_step(tmp_path: Path, shell: list[str]) -> None:
    text = step('echo before; fail "$(param why)"')
    ran = dispatched(tmp_path, {"bad": text, "never": step("true")}, {"why": TRICKY.encode()}, shell)
    assert ran.code == 1
    assert ran.last == {"event": "failed", "step": "bad", "why": TRICKY, "log": "before"}


def test_reason_is_the_last_line_where_none_is_given(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"bad": step("echo first; echo 'the \"cause\"' >&2; echo; exit 3")})
    assert ran.last["why"] == 'the "cause"'
    assert ran.last["log"].splitlines()[:2] == ["first", 'the "cause"']


def test_a_step_that_says_nothing(tmp_path: Path) -> None:
    assert dispatched(tmp_path, {"bad": "exit 1\n"}).last["why"] == "it said nothing"


def test_any_failing_command_ends_a_step(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"bad": step("false\nresult after it")})
    assert ran.last["event"] == "failed"
    assert not (ran.folder / "state/result").exists()


def test_a_variable_that_is_not_set_ends_a_step(tmp_path: Path) -> None:
    assert dispatched(tmp_path, {"bad": step('echo "$NO_SUCH_THING"')}).last["event"] == "failed"


@pytest.mark.parametrize("shell", SHELLS)
def test_log_of_all_bytes(tmp_path: Path, shell: list[str]) -> None:
    ran = dispatched(tmp_path, {"bad": step("param noise; exit 1")}, {"noise": bytes(range(256)) * 20}, shell)
    assert ran.last["event"] == "failed"
    assert all(
        character.isprintable() or character in "\n\t" or ord(character) > 126
        for character in ran.last["log"]
    )


def test_log_keeps_lines_and_its_end(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"bad": step('seq 100; printf "a\\tb\\n"; exit 1')})
    lines = ran.last["log"].splitlines()
    assert lines[-2:] == ["100", "a\tb"]
    assert len(lines) == 20


def test_missing_tool(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"one": "# needs: sh no-such-tool cat\nexit 0\n"})
    assert ran.code == 1
    assert ran.last["event"] == "failed"
    assert ran.last["why"] == "the helper has no program no-such-tool"


def test_needed_tools_that_are_there(tmp_path: Path) -> None:
    assert dispatched(tmp_path, {"one": "# needs: sh cat\nexit 0\n"}).code == 0


def test_a_step_cannot_write_events(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"one": step("""echo '{"event":"result","values":[]}'""")})
    assert [event["event"] for event in ran.events] == ["start", "end", "result"]


def test_a_step_reads_nothing_of_the_job(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"one": step("cat"), "two": step("result two ran")})
    assert ran.values == [["two", "ran"]]


def test_data_is_not_run(tmp_path: Path) -> None:
    evil = f"$(touch {tmp_path}/evil) `touch {tmp_path}/evil`; touch {tmp_path}/evil\n"
    ran = dispatched(tmp_path, {"one": step('x=$(param it); result it "$x"')}, {"it": evil.encode()})
    assert ran.values == [["it", evil.strip()]]
    assert not (tmp_path / "evil").exists()


def test_has(tmp_path: Path) -> None:
    text = step("if has there; then result there yes; fi; if has none; then result none yes; fi")
    assert dispatched(tmp_path, {"one": text}, {"there": b""}).values == [["there", "yes"]]


def test_value_with_a_newline(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"one": step('result kargs "$(param it)"')}, {"it": b'root=x\nfoo="b c'})
    assert [key for key, _ in ran.values] == ["kargs"]


WATCH = {"beat-seconds": b"1", "stall-limit": b"2", "step-limit": b"3"}


def test_a_long_step_beats_and_the_result_is_whole(tmp_path: Path) -> None:
    busy = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done"
    many = 'i=0; while [ $((i += 1)) -le 30 ]; do result key "value $i $(printf %0300d 0)"; done'
    ran = dispatched(tmp_path, {"busy": step(busy), "many": step(many)}, WATCH | {"step-limit": b"60"})
    assert ran.code == 0
    assert [event["event"] for event in ran.events].count("beat") >= 1
    assert len(ran.values) == 30


@pytest.mark.parametrize("text", ["kill -STOP $$", "while :; do :; done"])
def test_a_step_without_end_is_ended(tmp_path: Path, text: str) -> None:
    began = time.monotonic()
    ran = dispatched(tmp_path, {"stuck": step(text), "never": step("result key x")}, WATCH)
    assert time.monotonic() - began < 15
    assert ran.code == 1
    assert (ran.last["event"], ran.last["step"]) == ("failed", "stuck")
    # Whether nothing is done is read off the whole machine, and this one does other things too.
    assert re.match(r"it has done nothing for [23] s|it did not end in 3 s", ran.last["why"])


def test_a_step_killed_for_want_of_memory_says_so(tmp_path: Path) -> None:
    ran = dispatched(tmp_path, {"large": step("kill -9 $$")})
    assert ran.code == 1
    assert "memory" in ran.last["why"]
    assert ran.last["killed"] is True


def test_a_step_that_refuses_was_not_killed(tmp_path: Path) -> None:
    assert "killed" not in dispatched(tmp_path, {"strict": step("fail no")}).last


def test_nothing_beats_for_a_dispatcher_that_was_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = dispatched(tmp_path, {"fatal": step("kill -9 $PPID; sleep 0.2")}, WATCH | {"stall-limit": b"60"})
    assert time.monotonic() - began < 10  # its output ended
    assert ran.code != 0
