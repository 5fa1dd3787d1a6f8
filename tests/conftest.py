"""What all tests need."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import cast

import pytest

from tests.faults.experiment import Length
from tests.vm.ground import Ground, opened_ground

_LENGTHS = ("check", "short")


def pytest_configure(config: pytest.Config) -> None:
    """Have SIGINT mean an interrupt, also where a shell started us in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def length() -> Length:
    """How much is run: 'check', or 'short' for `make soak-short`, by COMPOSER_TEST_LENGTH."""
    named = os.environ.get("COMPOSER_TEST_LENGTH", "check")
    assert named in _LENGTHS, f"COMPOSER_TEST_LENGTH is one of {_LENGTHS}"
    return cast(Length, named)


@pytest.fixture(scope="session")
def ground(length: Length) -> Iterator[Ground]:
    with opened_ground(boots=length != "check") as ground:
        yield ground
