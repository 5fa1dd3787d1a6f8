"""What all tests need."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have SIGINT mean an interrupt, also where a shell started us in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
