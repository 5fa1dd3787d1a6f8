"""Host programs: their errors are told, and none outlives the call that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import BadInput, DeadlineExpired, ToolFailed
from composer.process import Limits, find_tool, package_of, pipeline, run

Fake = Callable[[str, str], Path]


def gone(pid_file: Path) -> bool:
    """Whether the process that wrote its pid, and it must have, has ended."""
    pid = int(pid_file.read_text())
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    # PID 1 of a container may leave it a zombie, which runs no more.
    return said.rpartition(")")[2].split()[0] in ("Z", "X")


def test_output(deadline: Deadline) -> None:
    done = run(["sh", "-c", "echo out; echo err >&2"], deadline=deadline)
    assert (done.stdout, done.stderr, done.text) == (b"out\n", b"err\n", "out\n")


def test_words_are_not_read_by_a_shell(deadline: Deadline) -> None:
    assert run(["printf", "%s|", "a b", "$HOME;x", "'"], deadline=deadline).stdout == b"a b|$HOME;x|'|"


def test_output_that_is_no_utf8_survives(deadline: Deadline) -> None:
    assert os.fsencode(run(["printf", r"\377"], deadline=deadline).text) == b"\xff"


def test_stdin(deadline: Deadline) -> None:
    much = bytes(range(256)) * 4096
    assert run(["cat"], stdin=much, deadline=deadline).stdout == much
    assert run(["cat"], deadline=deadline).stdout == b""
    run(["true"], stdin=much, deadline=deadline)  # read by nobody


def test_environment_and_folder(deadline: Deadline, tmp_path: Path) -> None:
    said = run(["sh", "-c", 'echo "$LC_ALL $X"; pwd'], env={"X": "1"}, cwd=tmp_path, deadline=deadline)
    assert said.text == f"C.UTF-8 1\n{tmp_path}\n"


def test_no_more_of_the_environment_is_passed_than_needed(
    deadline: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "ALL_PROXY", "GIO_EXTRA_MODULES", "LD_PRELOAD", "BASH_ENV", "OSTREE_REPO"):
        monkeypatch.setenv(name, "")
    said = run(["env"], deadline=deadline).text
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert {"PATH", "LC_ALL"} <= names
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH",
                     "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LC_ALL", "PWD", "SHLVL", "_"
                     } | {name for name in names if name.startswith("COMPOSER_")}  # fmt: skip


def test_exit_codes(deadline: Deadline) -> None:
    with pytest.raises(ToolFailed, match="sh ended with 7: second") as caught:
        run(["sh", "-c", "echo first >&2; echo second >&2; exit 7"], deadline=deadline)
    assert caught.value.returncode == 7
    assert caught.value.detail == "first\nsecond"
    assert run(["sh", "-c", "exit 3"], ok=(0, 3), deadline=deadline).stdout == b""
    with pytest.raises(ToolFailed, match="it said nothing"):
        run(["false"], deadline=deadline)


def test_killed_by_a_signal(deadline: Deadline) -> None:
    with pytest.raises(ToolFailed) as caught:
        run(["sh", "-c", "kill -9 $$"], deadline=deadline)
    assert caught.value.returncode == -9


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_memory_is_limited(deadline: Deadline) -> None:
    limits = Limits(memory=2**28)
    run(python("b'x' * 2**20"), deadline=deadline, limits=limits)
    with pytest.raises(ToolFailed, match="MemoryError"):
        run(python("b'x' * 2**29"), deadline=deadline, limits=limits)


def test_files_are_limited(tmp_path: Path, deadline: Deadline) -> None:
    code = f"with open({str(tmp_path / 'f')!r}, 'wb') as file: file.write(bytes(2**20 + 1))"
    with pytest.raises(ToolFailed, match="File too large"):
        run(python(code), deadline=deadline, limits=Limits(file=2**20))
    assert (tmp_path / "f").stat().st_size == 2**20


def test_cpu_time_is_limited_by_the_deadline_on_all_cpus(deadline: Deadline) -> None:
    said = run(
        python("import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])"), deadline=deadline
    )
    assert 0 < int(said.stdout) <= (deadline.left() + 22) * (os.cpu_count() or 1)


def test_output_is_limited(deadline: Deadline) -> None:
    assert run(["head", "-c", "1000", "/dev/zero"], deadline=deadline, largest=1000).stdout == bytes(1000)
    began = time.monotonic()
    with pytest.raises(ToolFailed, match="it printed more than 1 MiB"):
        run(["cat", "/dev/zero"], deadline=deadline, largest=2**20)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("command", ["sleep 6 & exit 0", "setsid sleep 6 & sleep 6", "sleep 6 & sleep 6"])
def test_what_a_program_leaves_behind_holds_nobody_beyond_the_deadline(command: str) -> None:
    """Its output may not be whole then, so it does not count as done."""
    began = time.monotonic()
    with pytest.raises(DeadlineExpired):
        run(["sh", "-c", command], deadline=Deadline.after(0.5))
    assert time.monotonic() - began < 4


def test_a_lower_limit_of_the_users_stays() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        "from composer.process import run; from composer.deadline import Deadline;"
        "print(run(['sh', '-c', 'ulimit -f'], deadline=Deadline.after(9)).text)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) * 512 == 2**20


def test_a_program_that_closes_its_output_early_is_waited_for(deadline: Deadline) -> None:
    with pytest.raises(ToolFailed) as caught:
        run(["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 4"], deadline=deadline)
    assert caught.value.returncode == 4


def test_missing_tool_names_its_package(
    monkeypatch: pytest.MonkeyPatch, deadline: Deadline, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="'no-such-tool' is not installed") as caught:
        run(["no-such-tool"], deadline=deadline)
    assert "apt install no-such-tool" in (caught.value.hint or "")
    assert package_of("qemu-img") == ("qemu-utils", "qemu-img")


def test_tools_of_sbin_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool("ldconfig") in ("/usr/sbin/ldconfig", "/sbin/ldconfig")


@pytest.mark.parametrize(("ending", "longest"), [("", 2.2), ("trap '' TERM", 4.7)])
def test_deadline_ends_the_program(tmp_path: Path, fake_tool: Fake, ending: str, longest: float) -> None:
    """The second one does not care about SIGTERM."""
    fake_tool("slow", f"{ending}\necho $$ >{tmp_path}/pid\nwhile :; do sleep 0.05; done")
    began = time.monotonic()
    with pytest.raises(DeadlineExpired, match="slow did not end in time"):
        run(["slow"], deadline=Deadline.after(1))
    assert time.monotonic() - began < longest
    assert gone(tmp_path / "pid")


def test_a_program_may_tidy_up_before_it_ends(tmp_path: Path, fake_tool: Fake) -> None:
    fake_tool("tidy", f"trap 'touch {tmp_path}/tidied; exit' TERM\nwhile :; do sleep 0.05; done")
    with pytest.raises(DeadlineExpired):
        run(["tidy"], deadline=Deadline.after(1))
    assert (tmp_path / "tidied").exists()


def test_deadline_ends_its_children_too(tmp_path: Path, fake_tool: Fake) -> None:
    fake_tool("parent", f"sleep 30 & echo $! >{tmp_path}/pid\nwait")
    with pytest.raises(DeadlineExpired):
        run(["parent"], deadline=Deadline.after(1))
    time.sleep(0.1)
    assert gone(tmp_path / "pid")


def test_interrupt_ends_the_program(
    tmp_path: Path, fake_tool: Fake, monkeypatch: pytest.MonkeyPatch, deadline: Deadline
) -> None:
    fake_tool("slow", f"echo $$ >{tmp_path}/pid\nkill -INT {os.getpid()}\nwhile :; do sleep 0.05; done")
    with pytest.raises(KeyboardInterrupt):
        run(["slow"], deadline=deadline)
    assert gone(tmp_path / "pid")


def test_pipeline(tmp_path: Path, deadline: Deadline) -> None:
    pipeline(["seq", "100000"], ["sh", "-c", f"wc -l >{tmp_path}/lines"], deadline=deadline)
    assert (tmp_path / "lines").read_text().strip() == "100000"


def test_pipeline_tells_the_cause(deadline: Deadline) -> None:
    with pytest.raises(ToolFailed, match="sh ended with 5: disk full"):
        pipeline(["sh", "-c", "echo disk full >&2; exit 5"], ["sh", "-c", "exit 6"], deadline=deadline)
    with pytest.raises(ToolFailed, match="sh ended with 6: no room"):
        pipeline(["seq", "1000000"], ["sh", "-c", "echo no room >&2; exit 6"], deadline=deadline)


def test_pipeline_deadline_ends_both(tmp_path: Path, fake_tool: Fake) -> None:
    for name in ("source", "sink"):
        fake_tool(name, f"echo $$ >{tmp_path}/{name}.pid\nwhile :; do sleep 0.05; done")
    with pytest.raises(DeadlineExpired, match=r"source \| sink did not end"):
        pipeline(["source"], ["sink"], deadline=Deadline.after(1))
    assert gone(tmp_path / "source.pid")
    assert gone(tmp_path / "sink.pid")


def test_pipeline_without_its_sink(tmp_path: Path, fake_tool: Fake, deadline: Deadline) -> None:
    fake_tool("source", f"echo $$ >{tmp_path}/pid\nwhile :; do sleep 0.05; done")
    with pytest.raises(BadInput, match="no-such-tool"):
        pipeline(["source"], ["no-such-tool"], deadline=deadline)
    pid = tmp_path / "pid"
    # It may have been killed before it wrote it.
    assert not pid.exists() or not pid.read_text() or gone(pid)


def test_pipeline_with_a_source_that_complains_a_lot(deadline: Deadline) -> None:
    pipeline(["sh", "-c", "seq 100000 >&2; echo"], ["cat"], deadline=deadline)


def test_a_program_ends_with_a_composer_that_is_killed(tmp_path: Path) -> None:
    """It would write on into what another composer works with by then."""
    pid = tmp_path / "pid"
    code = (
        "import sys\nfrom composer.deadline import Deadline\nfrom composer.process import run\n"
        "run(['sh', '-c', 'echo $$ >\"$0.new\"; mv \"$0.new\" \"$0\"; sleep 60; :', sys.argv[1]],"
        " deadline=Deadline.after(60))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(pid)]) as composer:
        try:
            began = time.monotonic()
            while not pid.exists():
                assert time.monotonic() - began < 30
                time.sleep(0.02)
            assert not gone(pid)
        finally:
            composer.kill()
    began = time.monotonic()
    while not gone(pid):
        assert time.monotonic() - began < 5
        time.sleep(0.02)
