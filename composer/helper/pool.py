"""Helpers ready ahead of need: cloned, with an open shell, and paused until somebody leases one.

While a batch runs, the pool keeps up to so many spares.  One lease is one VM: it ends with its lease and
serves no second disk, so nothing of one disk reaches another.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from composer.deadline import Deadline
from composer.errors import ComposerError
from composer.helper.lease import Helper
from composer.helper.shell import Answer, Shell

_WARM_SECONDS = 10.0
_POLL_SECONDS = 0.25
# Fractions are for coreutils; busybox takes whole seconds.
_SET_CLOCK = '{ date -s "@$1" || date -s "@${1%.*}"; } >/dev/null 2>&1; shift; exec "$@"'


@dataclass(frozen=True)
class _Spare:
    helper: Helper
    lifetime: ExitStack


class _Woken:
    """The shell of a machine that was paused: its first command sets the clock, which stood, on the way."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._clock_stood = True

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Answer:
        if self._clock_stood:
            self._clock_stood = False
            argv = ["/bin/sh", "-c", _SET_CLOCK, "sh", f"{time.time():.3f}", *argv]
        return self._shell.run(argv, deadline=deadline, stdin=stdin, on_stdout=on_stdout)

    def interact(self) -> int:
        return self._shell.interact()


class Pool:
    """Leases helpers, from spares where there are any; use it as a context manager.

    ``make`` starts a helper; it gets a name that is unique in the pool.  It is called from a thread.
    ``spares`` is at least 1.
    """

    def __init__(self, make: Callable[[str], AbstractContextManager[Helper]], spares: int) -> None:
        self._make = make
        self._wanted = spares
        self._numbers = itertools.count()
        self._ready: deque[_Spare] = deque()
        self._failed: ComposerError | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._filler = threading.Thread(target=self._fill, name="pool", daemon=True)

    def __enter__(self) -> Pool:
        self._filler.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._filler.join()
        while self._ready:
            self._ready.popleft().lifetime.close()

    def spares(self) -> int:
        """Return how many are ready now."""
        return len(self._ready)

    def wait_until_full(self, deadline: Deadline) -> None:
        """Wait until all spares are ready; raises what kept one from being made."""
        with self._changed:
            while len(self._ready) < self._wanted:
                self._raise_failure()
                deadline.check("the pool to fill")
                self._changed.wait(min(_POLL_SECONDS, deadline.left()))

    @contextmanager
    def lease(self, deadline: Deadline) -> Iterator[Helper]:
        """Yield a helper that nobody used before; it has ended when the block has.

        Raises what kept one from being made; the next lease tries again.
        """
        spare = self._take(deadline)
        with spare.lifetime:
            spare.helper.machine.resume()
            yield Helper(spare.helper.machine, _Woken(spare.helper.shell), spare.helper.run)

    def _take(self, deadline: Deadline) -> _Spare:
        with self._changed:
            while not self._ready:
                self._raise_failure()
                deadline.check("a helper from the pool")
                self._changed.wait(min(_POLL_SECONDS, deadline.left()))
            self._changed.notify_all()
            return self._ready.popleft()

    def _raise_failure(self) -> None:
        if self._failed is not None:
            failed, self._failed = self._failed, None
            self._changed.notify_all()
            raise failed

    def _fill(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (self._failed or len(self._ready) >= self._wanted):
                    self._changed.wait()
                if self._closing:
                    return
            try:
                spare = self._start()
            except ComposerError as error:
                with self._changed:
                    self._failed = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._ready.append(spare)
                    self._changed.notify_all()

    def _start(self) -> _Spare:
        """Start a helper, run a command in it, so that the lease's first one is quick, and pause it."""
        with ExitStack() as stack:
            helper = stack.enter_context(self._make(str(next(self._numbers))))
            helper.shell.run(["true"], deadline=Deadline.after(_WARM_SECONDS))
            helper.machine.pause()
            return _Spare(helper, stack.pop_all())
