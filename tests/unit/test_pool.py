"""The pool of helpers: one awake, the others paused, each leased once, all ended at its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from composer.deadline import Deadline
from composer.errors import ComposerError
from composer.helper.lease import Helper
from composer.helper.pool import Pool, Wake
from composer.helper.shell import Answer
from composer.store.runs import Run


class FakeShell:
    """A guest that says yes."""

    def run(self, argv: Any, **_: Any) -> Answer:
        return Answer(0, b"", b"")

    def interact(self) -> int:
        return 0


class FakeMachine:
    """A machine that runs until it is told that it died."""

    def __init__(self) -> None:
        self.alive = True

    def running(self) -> bool:
        return self.alive


class Maker:
    """Makes fake helpers, and keeps the books."""

    def __init__(self, fail: int = 0) -> None:
        self.alive: set[str] = set()
        self.awake: set[str] = set()
        self.fail = fail
        self.error: Exception = ComposerError("no memory left")
        self.machines: dict[str, FakeMachine] = {}
        self.lock = threading.Lock()

    @contextmanager
    def prepare(self, name: str) -> Iterator[Wake]:
        with self.lock:
            if self.fail:
                self.fail -= 1
                raise self.error
            self.alive.add(name)

        @contextmanager
        def wake() -> Iterator[Helper]:
            self.awake.add(name)
            try:
                self.machines[name] = FakeMachine()
                yield Helper(self.machines[name], FakeShell(), Run(Path(name)))  # type: ignore[arg-type]
            finally:
                self.awake.remove(name)

        try:
            yield wake
        finally:
            self.alive.remove(name)


def pool_of(maker: Maker, spares: int) -> AbstractContextManager[Pool]:
    return Pool(maker.prepare, spares)


def test_one_spare_is_awake_and_the_others_are_not(deadline: Deadline) -> None:
    maker = Maker()
    with pool_of(maker, 3) as pool:
        pool.wait_until_full(deadline)
        assert len(maker.alive) == 3
        assert len(maker.awake) == 1
    assert maker.alive == maker.awake == set()


def test_each_lease_is_another_machine_that_ends_with_it(deadline: Deadline) -> None:
    maker = Maker()
    names = []
    with pool_of(maker, 2) as pool:
        for _ in range(5):
            with pool.lease(deadline) as helper:
                names.append(helper.run.name)
                assert names[-1] in maker.awake
            assert names[-1] not in maker.alive
        with pool.lease(deadline) as first, pool.lease(deadline) as second:
            assert first.run.name != second.run.name
    assert len(set(names)) == 5
    assert maker.alive == set()


def test_what_a_lease_fails_with_is_told_and_the_next_one_tries_again(deadline: Deadline) -> None:
    maker = Maker(fail=2)  # the first may be over before anybody waits
    with pool_of(maker, 1) as pool:
        with pytest.raises(ComposerError, match="no memory left"), pool.lease(deadline):
            pass
        with pool.lease(deadline):
            pass
    assert maker.alive == set()


def test_a_lease_that_raises_ends_its_machine(deadline: Deadline) -> None:
    maker = Maker()
    with pool_of(maker, 1) as pool, pytest.raises(ZeroDivisionError), pool.lease(deadline):
        raise ZeroDivisionError
    assert maker.alive == set()


def test_a_spare_that_died_is_not_leased(deadline: Deadline) -> None:
    maker = Maker()
    with Pool(maker.prepare, 2) as pool:
        pool.wait_until_full(deadline)
        (dead,) = maker.awake
        maker.machines[dead].alive = False
        with pool.lease(deadline) as helper:
            assert helper.run.path.name != dead
            assert dead not in maker.alive


def test_whatever_keeps_a_spare_from_being_made_is_told(deadline: Deadline) -> None:
    maker = Maker(fail=1)
    maker.error = OSError(28, "No space left on device")
    with Pool(maker.prepare, 1) as pool:
        with pytest.raises(OSError, match="No space"):
            pool.wait_until_full(deadline)
        pool.wait_until_full(deadline)


def test_what_failed_before_is_no_answer_to_a_lease(deadline: Deadline) -> None:
    maker = Maker(fail=1)
    with Pool(maker.prepare, 1) as pool:
        while maker.fail:
            time.sleep(0.01)
        time.sleep(0.05)
        with pool.lease(deadline):
            pass
