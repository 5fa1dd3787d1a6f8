"""What all cases share: the repo they measure on, a workshop, and what a measurement is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from composer.compose.workshop import Options, Workshop
from composer.deadline import Deadline
from composer.events import Reporter, Tape
from composer.helper.bootstrap import BootstrapImage
from composer.repo.local import Repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from composer.store.folders import Folders

TOP = Path(__file__).resolve().parents[2]
REPO = TOP / "demo" / "repo"
REF = "debian/bookworm/amd64/demo"


@dataclass(frozen=True)
class Measured:
    """Samples by label, ratios by label, and figures that are no seconds."""

    samples: dict[str, list[float]]
    ratio: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def workshop() -> Workshop:
    """Return a workshop with the user's own cache."""
    return Workshop(Folders.of(os.environ), Reporter(Tape()), Options(), Deadline.after(3600))


def demo_image(here: Workshop) -> tuple[Repo, str, BootstrapImage]:
    """Return the demo's commit as the composer's own repo has it, and the bootstrap image of that."""
    with here.source(str(REPO), TOP, Trust(), Tls()) as source:
        commit = source.resolve(REF)
        repo = here.fetch(source, REF, commit)
    return repo, commit, here.bootstrap(repo, commit, ())
