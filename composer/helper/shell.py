"""Commands in a helper VM, by SSH over a virtio-serial port; the only module that imports paramiko.

A port is used instead of TCP because nothing listens on the host then, no port number can be taken by
somebody else, and a helper that pulls nothing needs no network; and because its closing tells the guest
at once that the composer is gone.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import select
import shlex
import shutil
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast

import paramiko

from composer.deadline import Deadline
from composer.errors import DeadlineExpired, HelperDied, ShellFailed
from composer.helper.keys import RunKeys

_POLL_SECONDS = 0.01
_LIFE_CHECK_SECONDS = 0.25
# An sshd that lives opens a channel in a fraction of this, on the busiest host.
_ANSWER_SECONDS = 25.0
_CHUNK = 2**16
_DIAL_SECONDS = 10.0
_LONGEST_STDOUT = 2**26
_LONGEST_STDERR = 2**20


_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer:
    """What a command in the guest gave back."""

    code: int
    stdout: bytes
    stderr: bytes


class Alive(Protocol):
    """What a shell asks of the machine that it talks to."""

    def running(self) -> bool:
        """Whether the machine still runs."""

    def check(self, doing: str) -> None:
        """Raise the error that tells why it does not run on: HelperDied, NoSpace."""

    def death(self, doing: str) -> HelperDied:
        """Return the error that tells of its end."""


class Commands(Protocol):
    """Runs commands in a guest."""

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
        silence: float | None = None,
    ) -> Answer:
        """Run a command to its end, whatever its exit code."""


class Shell(Commands, Protocol):
    """All that can be done in a guest."""

    def listening(self, serve: Callable[[Tunnel], None], deadline: Deadline) -> AbstractContextManager[int]:
        """Listen on the guest's own loopback for the block and yield the port."""

    def interact(self) -> int:
        """Give the user's terminal to a shell in the guest; return its exit code."""


class Tunnel:
    """A connection that a program in the guest made to a port of `Shell.listening`, as a socket of sorts."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def makefile(self, mode: str, buffering: int, /) -> IO[bytes]:
        """Return it as a file."""
        return cast(IO[bytes], self._channel.makefile(mode, buffering))

    def settimeout(self, seconds: float, /) -> None:
        """Limit each wait on it."""
        self._channel.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: bool, /) -> None:
        """Do nothing: it has no options."""

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more comes from here (SHUT_WR) or that we are done with it (SHUT_RDWR)."""
        self._channel.shutdown(how)

    def close(self) -> None:
        """End it."""
        self._channel.close()


class PortShell:
    """A shell over one SSH connection, kept open for the whole job."""

    def __init__(self, transport: paramiko.Transport, machine: Alive) -> None:
        self._transport = transport
        self._machine = machine

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
        silence: float | None = None,
    ) -> Answer:
        """Run a command to its end, whatever its exit code.

        ``on_stdout`` gets the output as it comes, and the answer is then without it.  Raises
        DeadlineExpired, HelperDied when the machine ends meanwhile or the command says nothing for
        ``silence`` seconds, ShellFailed when the connection breaks.
        """
        # The one place where an argv becomes the text that SSH carries.
        command = shlex.join(argv)
        try:
            channel = self._asked(
                lambda: self._transport.open_session(timeout=max(deadline.left(), 1)),
                f"running {argv[0]}",
                deadline,
            )
            self._asked(lambda: channel.exec_command(command), f"running {argv[0]}", deadline)
            feeder = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
            feeder.start()
            out, err = self._collect(channel, argv[0], deadline, on_stdout, silence)
            code = channel.recv_exit_status()
            channel.close()
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not self._gone_soon():
                raise ShellFailed(
                    f"the connection into the helper broke: {str(error) or type(error).__name__}"
                ) from error
            raise self._machine.death(f"running {argv[0]}") from error
        if code == -1:  # the connection ended before the command did
            if self._gone_soon():
                raise self._machine.death(f"running {argv[0]}")
            raise ShellFailed(f"the connection into the helper broke while {argv[0]} ran")
        return Answer(code, out, err)

    def _asked(self, ask: Callable[[], _T], doing: str, deadline: Deadline) -> _T:
        """Ask the guest's SSH server for something; paramiko waits for its answers without a limit."""
        answers: list[_T] = []
        failed: list[Exception] = []

        def asking() -> None:
            try:
                answers.append(ask())
            except (paramiko.SSHException, OSError, EOFError) as error:
                failed.append(error)

        soon = Deadline.after(_ANSWER_SECONDS)
        thread = threading.Thread(target=asking, daemon=True)
        thread.start()
        thread.join(_LIFE_CHECK_SECONDS)
        while thread.is_alive():
            self._machine.check(doing)
            if deadline.expired:
                raise DeadlineExpired(f"the helper did not answer in time: {doing}")
            if soon.expired:
                raise HelperDied(
                    f"the helper did not answer for {_ANSWER_SECONDS:.0f} s while {doing}",
                    detail=self._machine.death(doing).detail,
                )
            thread.join(_LIFE_CHECK_SECONDS)
        if failed:
            raise failed[0]
        return answers[0]

    @contextmanager
    def listening(self, serve: Callable[[Tunnel], None], deadline: Deadline) -> Iterator[int]:
        """Listen on the guest's own loopback for the block and yield the port.

        Each connection there is given to ``serve``, which must return at once.  This is all that a guest
        without a network can reach.  Raises as `run`.
        """

        def taken(channel: paramiko.Channel, _origin: object, _server: object) -> None:
            serve(Tunnel(channel))

        def ask() -> int:
            return self._transport.request_port_forward("127.0.0.1", 0, taken)

        try:
            port = self._asked(ask, "opening a port in the helper", deadline)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ShellFailed(f"no port in the helper: {str(error) or type(error).__name__}") from error
        try:
            yield port
        finally:
            # Nobody waits for the answer: the helper may be gone by now.
            with suppress(paramiko.SSHException, OSError, EOFError):
                self._transport.global_request("cancel-tcpip-forward", ("127.0.0.1", port), wait=False)

    def _gone_soon(self) -> bool:
        """Whether the machine is ending; its sockets close a moment before libvirt hears of it."""
        deadline = Deadline.after(2)
        while self._machine.running() and not deadline.expired:
            time.sleep(_POLL_SECONDS)
        return not self._machine.running()

    def _collect(
        self,
        channel: paramiko.Channel,
        name: str,
        deadline: Deadline,
        on_stdout: Callable[[bytes], None] | None,
        silence: float | None,
    ) -> tuple[bytes, bytes]:
        out, err = bytearray(), bytearray()
        heard = time.monotonic()
        next_check = time.monotonic() + _LIFE_CHECK_SECONDS
        while True:
            ended = channel.exit_status_ready() or channel.closed
            idle = True
            # One piece at a time: a guest that never stops talking must not keep us from the deadline.
            if channel.recv_ready():
                idle = False
                heard = time.monotonic()
                chunk = channel.recv(_CHUNK)
                if on_stdout:
                    on_stdout(chunk)
                else:
                    out += chunk
            if channel.recv_stderr_ready():
                idle = False
                err += channel.recv_stderr(_CHUNK)
                del err[:-_LONGEST_STDERR]
            if len(out) > _LONGEST_STDOUT:
                channel.close()
                raise ShellFailed(f"{name} in the helper said more than {_LONGEST_STDOUT >> 20} MiB")
            if ended and idle and (channel.eof_received or channel.closed):
                return bytes(out), bytes(err)
            if deadline.expired:
                channel.close()
                raise DeadlineExpired(f"the command {name} in the helper did not end in time")
            if time.monotonic() > next_check:
                next_check = time.monotonic() + _LIFE_CHECK_SECONDS
                self._machine.check(f"running {name}")
                if time.monotonic() - heard > (silence or math.inf):
                    channel.close()
                    console = self._machine.death(name).detail
                    raise HelperDied(
                        f"the helper said nothing for {silence:.0f} s while running {name}", detail=console
                    )
            if idle:
                time.sleep(_POLL_SECONDS)

    def interact(self) -> int:
        """Give the user's terminal to a shell in the guest; return its exit code."""
        size = shutil.get_terminal_size()
        channel = self._transport.open_session(timeout=10)
        channel.get_pty(term="vt100", width=size.columns, height=size.lines)
        channel.invoke_shell()
        _join_terminal(channel)
        return channel.recv_exit_status()


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    # A command that ends before it has read all of its input is no error.
    with suppress(OSError, paramiko.SSHException, EOFError):
        channel.sendall(stdin)
        channel.shutdown_write()


def _join_terminal(channel: paramiko.Channel) -> None:
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        while True:
            readable, _, _ = select.select([channel, sys.stdin], [], [])
            if channel in readable:
                data = channel.recv(_CHUNK)
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            if sys.stdin in readable:
                typed = os.read(sys.stdin.fileno(), 1024)
                if not typed:
                    return
                channel.sendall(typed)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


@functools.cache
def _quieten_paramiko() -> None:
    """Keep paramiko's log off stderr; what it logs as errors reaches us as exceptions too."""
    logging.getLogger("paramiko").addHandler(logging.NullHandler())


@contextmanager
def dialled(path: Path, deadline: Deadline) -> Iterator[socket.socket]:
    """Connect to a port's socket, which appears as QEMU starts; closed with the block."""
    deadline = deadline.sooner(_DIAL_SECONDS)
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            try:
                line.connect(str(path))
            except OSError as error:
                if deadline.expired:
                    raise ShellFailed(
                        f"the helper's port {path.name} cannot be opened: {error.strerror}"
                    ) from error
            else:
                yield line
                return
        time.sleep(_POLL_SECONDS)


def _key(text: str) -> paramiko.Ed25519Key:
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text))


def _wait(event: threading.Event, machine: Alive, deadline: Deadline, doing: str) -> None:
    while not event.wait(_LIFE_CHECK_SECONDS):
        machine.check(doing)
        if deadline.expired:
            console = machine.death(doing).detail
            raise DeadlineExpired(f"gave up on {doing}: no SSH server answered in time", detail=console)


@contextmanager
def opened(line: socket.socket, keys: RunKeys, machine: Alive, deadline: Deadline) -> Iterator[PortShell]:
    """Open the shell of a helper over a port, and close it with the block.

    The guest's host key must be the one made for this run; any other is refused (ShellFailed).
    """
    _quieten_paramiko()
    transport = paramiko.Transport(line)
    try:
        options = transport.get_security_options()
        # Counter mode with its MAC costs least where the guest's CPU has no AES of its own.
        options.ciphers = ("aes128-ctr",)
        options.kex = ("curve25519-sha256@libssh.org",)
        transport.banner_timeout = deadline.left()
        transport.handshake_timeout = deadline.left()
        transport.auth_timeout = deadline.left()
        spoken = threading.Event()
        transport.start_client(event=spoken)
        _wait(spoken, machine, deadline, "opening a shell in the helper")
        if not transport.is_active():
            raise transport.get_exception() or paramiko.SSHException("no SSH server answered")
        offered = transport.get_remote_server_key()
        if f"{offered.get_name()} {offered.get_base64()}" != keys.host.public:
            raise ShellFailed("the helper showed another host key than the one made for this run")
        transport.auth_publickey("root", _key(keys.user.private))
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        if not machine.running():
            raise machine.death("opening a shell in the helper") from error
        raise ShellFailed(f"no SSH into the helper: {str(error) or type(error).__name__}") from error
    except BaseException:
        transport.close()
        raise
    try:
        yield PortShell(transport, machine)
    finally:
        transport.close()
