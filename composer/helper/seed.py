"""What a helper is told before anything else: its keys, its name, the time, and randomness of its own.

The guest waits for it on its first port (bootstrap/guest-init).  It is a few lines of text, and the guest
answers with a line when it has taken them in; only then does SSH begin on the same port.
A guest that is a copy of another (a clone of a template) gets by this all that must not be shared.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from dataclasses import dataclass
from typing import Literal

from composer.deadline import Deadline
from composer.errors import ComposerError, DeadlineExpired, ShellFailed
from composer.helper.keys import RunKeys
from composer.helper.shell import Alive

# 'boot': a machine that serves one job.  'template': one that will wait again, to be saved.
# 'clone': a copy, which is to go on only once its kernel has drawn fresh randomness.
Mode = Literal["boot", "template", "clone"]

_HELLO, _GO, _WAITING, _READY = b"composer-hello\n", b"composer-go\n", b"composer-waiting", b"composer-ready"
# What the rest of an earlier session may hold: as much as a pipe of the guest.
_LONGEST = 2**17
_LOOK_SECONDS = 0.25
_ASK_SECONDS = 1.0
_END_SECONDS = 2.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Seed:
    """What one machine is told; ``name`` becomes its host name."""

    mode: Mode
    name: str
    keys: RunKeys

    def message(self, now: float) -> bytes:
        """Return the lines that the guest reads; ``now`` in seconds since the epoch."""
        identity, randomness = secrets.token_hex(16), secrets.token_hex(64)
        head = f"composer-seed {self.mode} {now:.3f} {self.name} {identity} {randomness}"
        lines = (head, self.keys.user.public, self.keys.host.private.strip(), "composer-end")
        return "".join(f"{line}\n" for line in lines).encode()


def plant(line: socket.socket, seed: Seed, machine: Alive, deadline: Deadline) -> None:
    """Tell a guest its seed and wait until it has taken it in.

    Raises HelperDied and DeadlineExpired, as the machine ends or the deadline comes first.
    """
    _say(seed.message(time.time()), line, machine, "booting the helper")
    _wait_for(_READY, line, machine, deadline, "booting the helper")


def wait_until_waiting(line: socket.socket, machine: Alive, deadline: Deadline) -> None:
    """Wait until a guest listens: one in mode 'template' for its next seed.  Errors as in `plant`."""
    while True:
        # Asked again and again: the guest may take the first for the rest of the session before.
        _say(_HELLO, line, machine, "waiting for the helper")
        try:
            _wait_for(_WAITING, line, machine, deadline.sooner(_ASK_SECONDS), "waiting for the helper")
        except DeadlineExpired:
            deadline.check("the helper to listen")
        else:
            return


def ask_in(line: socket.socket, machine: Alive, deadline: Deadline) -> None:
    """Ask for a shell at a running guest's other port; SSH begins on it then.  Errors as in `plant`."""
    wait_until_waiting(line, machine, deadline)
    _say(_GO, line, machine, "asking for a shell in the helper")


def _say(text: bytes, line: socket.socket, machine: Alive, doing: str) -> None:
    try:
        line.sendall(text)
    except OSError as error:
        raise _closed(machine, doing) from error


def _closed(machine: Alive, doing: str) -> ComposerError:
    """Return the error for a port that closed: its machine has ended, or will have in a moment."""
    soon = Deadline.after(_END_SECONDS)
    while machine.running() and not soon.expired:
        time.sleep(_POLL_SECONDS)
    if machine.running():
        return ShellFailed(f"the helper's port closed while {doing}")
    return machine.death(doing)


def _wait_for(word: bytes, line: socket.socket, machine: Alive, deadline: Deadline, doing: str) -> None:
    said = bytearray(b"\n")
    while not said.endswith(b"\n" + word + b"\n"):
        # Looked at in each turn: a guest that never stops talking must not keep us.
        if deadline.expired:
            console = machine.death(doing).detail
            raise DeadlineExpired(f"gave up on {doing}: the guest did not answer in time", detail=console)
        readable, _, _ = select.select([line], [], [], min(_LOOK_SECONDS, deadline.left()))
        if readable:
            try:
                # A byte at a time: what follows the line may be SSH's already.
                got = line.recv(1)
            except OSError as error:  # QEMU ended with what we said still unread
                raise _closed(machine, doing) from error
            if not got:
                raise _closed(machine, doing)
            if len(said) > _LONGEST:
                raise ShellFailed(f"the guest talks without end while {doing}")
            said += got
        else:
            machine.check(doing)
