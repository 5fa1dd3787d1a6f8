"""What all tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.ground import Ground
from tests.vm.place import LEAN_REF, made_place


def pytest_configure(config: pytest.Config) -> None:
    """Have SIGINT mean an interrupt, also where a shell started us in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    with made_place() as place:
        yield Ground(place, LEAN_REF)
