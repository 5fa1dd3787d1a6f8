"""One deadline for a whole job, passed down to everything that waits."""

from __future__ import annotations

import time
from dataclasses import dataclass

from composer.errors import DeadlineExpired


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock; every wait takes what is left of it."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that ends ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    def sooner(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and ``seconds`` from now: a part's share of the whole."""
        return Deadline(min(self.at, time.monotonic() + seconds))

    def left(self) -> float:
        """Return the seconds left, never below 0."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() >= self.at

    def check(self, waiting_for: str) -> None:
        """Raise DeadlineExpired, saying what was waited for, once the moment has passed."""
        if self.expired:
            raise DeadlineExpired(f"gave up waiting for {waiting_for}")
