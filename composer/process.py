"""The one place that starts host programs: argv lists, a deadline, limits, an empty stdin, output kept.

`run` for a program whose output is the answer; `pipeline` for two of which one feeds the other.
Whatever was started has ended when these return.  Most of these programs read what is not ours, so each has
limits on its memory, its CPU time, the size of the files that it writes, and what it may print.
"""

from __future__ import annotations

import math
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from composer.deadline import Deadline
from composer.errors import BadInput, DeadlineExpired, ToolFailed

_GRACE_SECONDS = 2.0
_COMPANION_SECONDS = 15.0
_LONGEST_STDERR = 2**20
_LONGEST_STDOUT = 2**28
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
    "prlimit": ("util-linux", "util-linux"),
    "zstd": ("zstd", "zstd"),
}


@dataclass(frozen=True)
class Limits:
    """What a host program may take, in bytes: memory of its own, and the size of each file that it writes.

    A larger file ends the program (SIGXFSZ); None is for one that sees to that itself.  Its CPU time is
    limited by the deadline of its call, on all CPUs.
    """

    memory: int = 4 * 2**30
    file: int | None = 64 * 2**30


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
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes],
    stdout: int,
    env: Mapping[str, str],
    cwd: Path | None,
    prefix: Sequence[str],
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and see to it that it has ended, whatever happens inside the block."""
    program = find_tool(argv[0])
    # It ends with us, also where nobody gets to end it: what it writes to would have another owner soon.
    until_our_death = [find_tool("setpriv"), "--pdeathsig", "KILL", "--"]
    with _interrupts_held() as release:
        process = subprocess.Popen(
            [*until_our_death, *prefix, program, *argv[1:]],
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


def _limited(limits: Limits, deadline: Deadline) -> list[str]:
    """Return the words that start a program under limits (prlimit(1), setrlimit(2)).

    A lower limit that the user has already stays: nobody but root may raise one.
    """
    seconds = math.ceil((deadline.left() + 1) * (os.cpu_count() or 1))
    wanted = {
        "data": (resource.RLIMIT_DATA, limits.memory),
        "cpu": (resource.RLIMIT_CPU, seconds),
        "fsize": (resource.RLIMIT_FSIZE, limits.file),
        "core": (resource.RLIMIT_CORE, 0),
    }
    words = []
    for name, (kind, value) in wanted.items():
        highest = resource.getrlimit(kind)[1]
        if value is not None and (highest == resource.RLIM_INFINITY or value < highest):
            words.append(f"--{name}={value}")
    return [find_tool("prlimit"), *words, "--"]


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
    limits: Limits = Limits(),
    largest: int = _LONGEST_STDOUT,
) -> Finished:
    """Run a program to its end.

    Raises BadInput when it is not installed, ToolFailed when its exit code is not in ``ok`` or its stdout is
    longer than ``largest`` bytes, DeadlineExpired when it takes longer than the deadline allows.
    """
    find_tool(argv[0])  # its lack is told before that of what limits it
    source, prefix = subprocess.DEVNULL if stdin is None else subprocess.PIPE, _limited(limits, deadline)
    with _spawned(
        argv, stdin=source, stdout=subprocess.PIPE, env=env or {}, cwd=cwd, prefix=prefix
    ) as process:
        out, err = _communicated(process, Path(argv[0]).name, stdin or b"", largest, deadline)
        if process.returncode not in ok:
            raise ToolFailed(argv, process.returncode, err.decode("utf-8", "replace"))
    return Finished(out, err)


def _communicated(
    process: subprocess.Popen[bytes], name: str, stdin: bytes, largest: int, deadline: Deadline
) -> tuple[bytes, bytes]:
    """Feed a program and read what it prints, until it has ended and nobody can print any more.

    Raises ToolFailed once stdout is longer than ``largest`` bytes, DeadlineExpired.
    """
    out, err = bytearray(), bytearray()

    def printed(chunk: bytes) -> None:
        out.extend(chunk)
        if len(out) > largest:
            raise ToolFailed([name], 0, f"it printed more than {largest // 2**20} MiB")

    readers = {process.stdout: printed, process.stderr: _keeping(err)}
    _exchanged(readers, (process.stdin, stdin), name, deadline)
    _ended(process, name, deadline)
    return bytes(out), bytes(err)


def _keeping(kept: bytearray) -> Callable[[bytes], None]:
    """Return what keeps the beginning of a program's stderr."""
    return lambda chunk: kept.extend(chunk[: max(0, _LONGEST_STDERR - len(kept))])


def _exchanged(
    readers: Mapping[IO[bytes] | None, Callable[[bytes], None]],
    fed: tuple[IO[bytes] | None, bytes],
    name: str,
    deadline: Deadline,
) -> None:
    """Write to one pipe and read from others until all have ended; DeadlineExpired if they do not."""
    feeding, left = fed[0], memoryview(fed[1])
    with selectors.DefaultSelector() as selector:
        for stream in (feeding, *readers):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                selector.register(
                    stream, selectors.EVENT_WRITE if stream is feeding else selectors.EVENT_READ
                )
        while selector.get_map():
            ready = selector.select(deadline.left())
            if not ready and deadline.expired:
                raise DeadlineExpired(f"{name} did not end in time")
            for key, _ in ready:
                stream = cast(IO[bytes], key.fileobj)
                if stream is feeding:
                    left, is_over = _fed(stream, left)
                else:
                    chunk = os.read(stream.fileno(), 2**16)
                    readers[stream](chunk)
                    is_over = not chunk
                if is_over:
                    selector.unregister(stream)
                    stream.close()


def _ended(process: subprocess.Popen[bytes], name: str, deadline: Deadline) -> None:
    try:
        process.wait(deadline.left())
    except subprocess.TimeoutExpired:
        raise DeadlineExpired(f"{name} did not end in time") from None


def _fed(stream: IO[bytes], left: memoryview) -> tuple[memoryview, bool]:
    """Write some of what is left to a pipe; return the rest, and whether that is all, or nobody reads it."""
    try:
        left = left[os.write(stream.fileno(), left[: 2**16]) :]
    except BlockingIOError:
        return left, False
    except BrokenPipeError:
        return left, True
    return left, not left


def pipeline(
    source: Sequence[str],
    sink: Sequence[str],
    *,
    deadline: Deadline,
    limits: Limits = Limits(),
) -> None:
    """Run ``source | sink``; errors as in `run`, of the source first, for it is the cause."""
    for argv in (source, sink):
        find_tool(argv[0])
    spawned, name = (
        partial(_spawned, env={}, cwd=None, prefix=_limited(limits, deadline)),
        f"{source[0]} | {sink[0]}",
    )
    with spawned(source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as feeding:
        between, feeding.stdout = feeding.stdout, None
        assert between is not None
        with between, spawned(sink, stdin=between, stdout=subprocess.DEVNULL) as eating:
            between.close()  # so that the source sees SIGPIPE when the sink ends early
            fed, eaten = bytearray(), bytearray()
            readers = {feeding.stderr: _keeping(fed), eating.stderr: _keeping(eaten)}
            _exchanged(readers, (None, b""), name, deadline)
            for process in (eating, feeding):
                _ended(process, name, deadline)
            if feeding.returncode not in (0, -signal.SIGPIPE):
                raise ToolFailed(source, feeding.returncode, fed.decode("utf-8", "replace"))
            if eating.returncode != 0:
                raise ToolFailed(sink, eating.returncode, eaten.decode("utf-8", "replace"))
