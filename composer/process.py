"""The one place that starts host programs: argv lists, a deadline, an empty stdin, output kept.

`run` for a program whose output is the answer; `pipeline` for two of which one feeds the other.
Whatever was started has ended when these return.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from composer.deadline import Deadline
from composer.errors import BadInput, DeadlineExpired, ToolFailed

_GRACE_SECONDS = 2.0
_COMPANION_SECONDS = 15.0
_LONGEST_STDERR = 2**20
# What a host program may see of our environment.  Not the proxies: ostree would ask one for our own export,
# and tell it the token (upstream.py reads them, for servers that are really far away).  The last three are
# Python's own, for the watchdog programs.
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|TZ|XDG_RUNTIME_DIR|LD_LIBRARY_PATH|COMPOSER_[A-Z_]+"
    r"|PYTHONPATH|PYTHONHOME|VIRTUAL_ENV"
)

# Which package brings a tool, for the error that says it is missing: Debian's name, Fedora's name.
_PACKAGES = {
    "ostree": ("ostree", "ostree"),
    "qemu-img": ("qemu-utils", "qemu-img"),
    "qemu-system-x86_64": ("qemu-system-x86", "qemu-system-x86-core"),
    "mke2fs": ("e2fsprogs", "e2fsprogs"),
    "sqfstar": ("squashfs-tools", "squashfs-tools"),
    "busybox": ("busybox-static", "busybox"),
    "setpriv": ("util-linux", "util-linux"),
    "zstd": ("zstd", "zstd"),
}


@dataclass(frozen=True)
class Finished:
    """A program that ended with 0."""

    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its stdout as text; bytes that are no UTF-8 survive as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape")


def package_of(tool: str) -> tuple[str, str]:
    """Return the (Debian, Fedora) package that brings ``tool``."""
    return _PACKAGES.get(tool, (tool, tool))


def find_tool(tool: str) -> str:
    """Return the path of a host program, or raise BadInput with the command that installs it."""
    # Ordinary users on Debian have no sbin in PATH, yet some tools live there.
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    found = shutil.which(tool, path=search)
    if found is None:
        debian, fedora = package_of(tool)
        raise BadInput(
            f"the program {tool!r} is not installed",
            hint=f"apt install {debian}   (Debian, Ubuntu)   or   dnf install {fedora}   (Fedora)",
        )
    return found


def has_tool(tool: str) -> bool:
    """Whether a host program is installed."""
    try:
        find_tool(tool)
    except BadInput:
        return False
    return True


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return a host program's environment: the few variables that such programs need, and ``extra``."""
    passed = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
    # Messages of tools are matched in a few places; a translated one would not match.
    return {**passed, "LC_ALL": "C.UTF-8", **extra}


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold back the handlers of signals until the function that is yielded is called.

    Python runs them between any two steps, also after a child was forked and before anybody knows its
    pid.  They run in the main thread alone, so nothing is to be held in others.
    """
    held: list[int] = []
    former: dict[signal.Signals, Any] = {}

    def release() -> None:
        while former:
            number, handler = former.popitem()
            signal.signal(number, handler)
        while held:
            signal.raise_signal(held.pop())

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, lambda got, _frame: held.append(got))
                    former[number] = handler
        yield release
    finally:
        release()


@contextmanager
def _spawned(
    argv: Sequence[str], *, stdin: int | IO[bytes], stdout: int, env: Mapping[str, str], cwd: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and see to it that it has ended, whatever happens inside the block."""
    program = find_tool(argv[0])
    # It ends with us, also where nobody gets to end it: what it writes to would have another owner soon.
    until_our_death = [find_tool("setpriv"), "--pdeathsig", "KILL", "--"]
    with _interrupts_held() as release:
        process = subprocess.Popen(
            [*until_our_death, program, *argv[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=_environment(env),
            cwd=cwd,
            # Ctrl-C is for the composer, which then ends its children in order.
            start_new_session=True,
        )
        try:
            release()
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        # The group, for what it started itself; its own leader may be gone by now.
        _signal_group(process, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # It leads a session and so a group of its own.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextmanager
def companion(argv: Sequence[str], keeps: Sequence[int] = ()) -> Iterator[None]:
    """Have a program beside us for the block, with a pipe from us as its stdin.

    The pipe's end of file tells it that the block has ended or, without a byte before it, that we are
    dead, whatever killed us; it is for such programs to end soon after.  It inherits the descriptors
    ``keeps``, and with them our locks.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment({}),
        start_new_session=True,
        pass_fds=keeps,
    )
    try:
        yield
    finally:
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(b".")
                process.stdin.close()
        try:
            process.wait(_COMPANION_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follower(argv: Sequence[str]) -> None:
    """Start a program that outlives us; its stdin ends when this process has, whatever ended it."""
    reading, _ours = os.pipe()  # closed by the kernel alone: until then we are there
    # Not by Popen, which warns of a child that nobody waits for.
    try:
        os.posix_spawn(
            argv[0],
            list(argv),
            _environment({}),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
    finally:
        os.close(reading)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def run(
    argv: Sequence[str],
    *,
    deadline: Deadline,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ok: Sequence[int] = (0,),
) -> Finished:
    """Run a program to its end.

    Raises BadInput when it is not installed, ToolFailed when its exit code is not in ``ok``,
    DeadlineExpired when it takes longer than the deadline allows.
    """
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    with _spawned(argv, stdin=source, stdout=subprocess.PIPE, env=env or {}, cwd=cwd) as process:
        try:
            out, err = process.communicate(stdin, timeout=deadline.left())
        except subprocess.TimeoutExpired:
            raise DeadlineExpired(f"{Path(argv[0]).name} did not end in time") from None
        if process.returncode not in ok:
            raise ToolFailed(argv, process.returncode, err.decode("utf-8", "replace"))
    return Finished(out, err)


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _read_into(stream: IO[bytes] | None, kept: bytearray) -> None:
    while stream is not None and (chunk := stream.read(2**16)):
        kept += chunk[: max(0, _LONGEST_STDERR - len(kept))]


def pipeline(source: Sequence[str], sink: Sequence[str], *, deadline: Deadline) -> None:
    """Run ``source | sink``; errors as in `run`, of the source first, for it is the cause."""
    with (
        _spawned(source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={}, cwd=None) as feeding,
        _spawned(sink, stdin=_pipe(feeding), stdout=subprocess.DEVNULL, env={}, cwd=None) as eating,
    ):
        _pipe(feeding).close()  # so that the source sees SIGPIPE when the sink ends early
        feeding.stdout = None
        fed = bytearray()
        # Read beside the sink's: a source that complains a lot would wait for a reader for ever.
        reader = threading.Thread(target=_read_into, args=(feeding.stderr, fed), daemon=True)
        reader.start()
        try:
            _, eaten = eating.communicate(timeout=deadline.left())
            feeding.wait(deadline.left())
        except subprocess.TimeoutExpired:
            raise DeadlineExpired(f"{source[0]} | {sink[0]} did not end in time") from None
        reader.join(_GRACE_SECONDS)
        if feeding.returncode not in (0, -signal.SIGPIPE):
            raise ToolFailed(source, feeding.returncode, fed.decode("utf-8", "replace"))
        if eating.returncode != 0:
            raise ToolFailed(sink, eating.returncode, eaten.decode("utf-8", "replace"))
