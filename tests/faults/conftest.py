"""What the experiments stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.ground import Ground
from tests.vm.place import LEAN_REF, made_place


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A ground of their own, whose updates take two thirds of the time."""
    with made_place() as place:
        yield Ground(place, LEAN_REF)
