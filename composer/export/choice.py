"""Which way a commit takes into the helper: what was asked for, or the fastest that works here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from composer.errors import BadInput

Transport = Literal["delta", "9p", "virtiofs", "http"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)

# The fastest first, as measured (docs/performance.md, "Transports").  9p and virtiofs have to be there when
# a VM starts, so their helpers boot from cold: they are used when asked for.
_BY_SPEED: tuple[Transport, ...] = ("delta", "http")
_REASONS: dict[Transport, str] = {
    "delta": "a disk with just what is missing is the fastest",
    "http": "the fastest of those that work here",
}


@dataclass(frozen=True)
class Choice:
    """A transport and why it was taken."""

    transport: Transport
    why: str


def choose(asked: str, obstacles: Mapping[Transport, str]) -> Choice:
    """Return the transport to use; ``obstacles`` has the reason for each that cannot work here.

    Raises BadInput where the one asked for cannot work: another in its place would be a surprise.
    """
    for transport in TRANSPORTS:
        if asked == transport:
            if transport in obstacles:
                others = ", ".join(name for name in TRANSPORTS if name not in obstacles)
                raise BadInput(
                    f"the transport {transport} cannot work here: {obstacles[transport]}",
                    hint=f"--transport auto   or one of: {others}",
                )
            return Choice(transport, "it was asked for")
    for transport in _BY_SPEED:
        if transport not in obstacles:
            passed_over = [f"no {name}: {obstacles[name]}" for name in _BY_SPEED if name in obstacles]
            return Choice(transport, "; ".join([_REASONS[transport], *passed_over]))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in obstacles.items())
    raise BadInput(f"no transport can work here: {reasons}")
