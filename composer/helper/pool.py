"""Helpers ready ahead of need: one awake, with an open shell; the others loaded and paused.

While a batch runs, the pool keeps up to so many spares.  The one that is awake answers at once; a paused
one costs little memory and is woken as soon as that one is leased.  One lease is one VM: it ends with its
lease and serves no second disk, so nothing of one disk reaches another.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from composer.deadline import Deadline
from composer.helper.lease import Helper

# Makes a running helper of one that is prepared.
Wake = Callable[[], AbstractContextManager[Helper]]

_WARM_SECONDS = 10.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class _Paused:
    wake: Wake
    lifetime: ExitStack


@dataclass(frozen=True)
class _Awake:
    helper: Helper
    lifetime: ExitStack


class Pool:
    """Leases helpers; use it as a context manager.

    ``prepare`` begins a helper; it gets a name that is unique in the pool, and is called from a thread.
    ``spares``, at least 1, counts the one that is awake.
    """

    def __init__(self, prepare: Callable[[str], AbstractContextManager[Wake]], spares: int) -> None:
        self._prepare = prepare
        self._spares = spares
        self._numbers = itertools.count()
        self._awake: deque[_Awake] = deque()
        self._paused: deque[_Paused] = deque()
        self._failed: Exception | None = None
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
        with ExitStack() as ending:  # each is ended, also where another's end fails
            for lifetime in [spare.lifetime for spare in self._awake] + [
                spare.lifetime for spare in self._paused
            ]:
                ending.push(lifetime)

    def wait_until_full(self, deadline: Deadline) -> None:
        """Wait until all spares are there; raises what kept one from being made."""
        self._wait(lambda: len(self._awake) + len(self._paused) >= self._spares, deadline)

    @contextmanager
    def lease(self, deadline: Deadline) -> Iterator[Helper]:
        """Yield a helper that nobody used before; it has ended when the block has.

        Raises what kept one from being made while it waited; the next lease tries again.
        """
        spare = self._taken(deadline)
        while not spare.helper.machine.running():
            # It died while it waited; the host may have been short of memory.
            spare.lifetime.close()
            spare = self._taken(deadline)
        with spare.lifetime:
            yield spare.helper

    def _taken(self, deadline: Deadline) -> _Awake:
        with self._changed:
            # What failed before anybody waited is no answer to this lease.
            self._failed = None
            self._changed.notify_all()
            self._wait(lambda: bool(self._awake), deadline)
            spare = self._awake.popleft()
            self._changed.notify_all()
            return spare

    def _wait(self, done: Callable[[], bool], deadline: Deadline) -> None:
        with self._changed:
            while not done():
                if self._failed is not None:
                    failed, self._failed = self._failed, None
                    self._changed.notify_all()
                    raise failed
                deadline.check("a helper from the pool")
                self._changed.wait(min(_POLL_SECONDS, deadline.left()))

    def _next(self) -> Callable[[], None] | None:
        """Return what is to be done now to fill the pool, or None."""
        if self._failed is not None:
            return None
        if not self._awake:
            return self._wake_one
        if len(self._awake) + len(self._paused) < self._spares:
            return self._add_one
        return None

    def _fill(self) -> None:
        while True:
            with self._changed:
                while not self._closing and self._next() is None:
                    self._changed.wait()
                todo = self._next()
                if self._closing or todo is None:
                    return
            try:
                todo()
            except Exception as error:  # whatever it is, whoever waits is to hear of it
                self._failed = error
            with self._changed:
                self._changed.notify_all()

    def _add_one(self) -> None:
        with ExitStack() as stack:
            wake = stack.enter_context(self._prepare(str(next(self._numbers))))
            self._paused.append(_Paused(wake, stack.pop_all()))

    def _wake_one(self) -> None:
        if not self._paused:
            self._add_one()
        paused = self._paused.popleft()
        with paused.lifetime as stack:
            helper = stack.enter_context(paused.wake())
            # So that the first command of the lease finds its way known.
            helper.shell.run(["true"], deadline=Deadline.after(_WARM_SECONDS))
            self._awake.append(_Awake(helper, stack.pop_all()))
