"""`make bench CASE=name OUT=file.json`: measures, prints medians, and writes all samples.

The form of the file: `case`, `machine`, and by label `samples`, `median`, `ratio`.  All samples of a case
come from one run, labels alternating, so that what disturbs one disturbs the others as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from composer.compose.workshop import Options, Workshop
from composer.deadline import Deadline
from composer.events import Reporter, Tape
from composer.helper.bootstrap import build_bootstrap, cache_of
from composer.helper.lease import HelperShape, cold_helper
from composer.store.folders import Folders

TOP = Path(__file__).resolve().parents[2]
REPO = TOP / "demo" / "repo"
REF = "debian/bookworm/amd64/demo"

Samples = dict[str, list[float]]


def workshop() -> Workshop:
    """Return a workshop with the user's own cache."""
    options = Options(accelerator="auto")
    return Workshop(Folders.of(os.environ), Reporter(Tape()), options, Deadline.after(3600))


def helper_cold(rounds: int) -> tuple[Samples, dict[str, float]]:
    """Cold helper: bootstrap image from nothing, start to first command's result, one more command."""
    samples: Samples = {"bootstrap": [], "start-to-first-command": [], "command": []}
    here = workshop()
    repo = here.repo(str(REPO), TOP, [REF])
    commit = repo.resolve(REF, here.deadline)
    image = here.bootstrap(repo, commit, ())
    shape = HelperShape(2**30, 2)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench.", dir="/var/tmp") as empty:
            began = time.monotonic()
            build_bootstrap(cache_of(Path(empty)), repo, commit, here.deadline)
            samples["bootstrap"].append(time.monotonic() - began)
        with here.bench("bench", image) as bench:
            began = time.monotonic()
            with cold_helper(bench.host, image, bench.abilities, shape, bench.run, here.deadline) as helper:
                helper.shell.run(["true"], deadline=here.deadline)
                samples["start-to-first-command"].append(time.monotonic() - began)
                for _ in range(5):
                    began = time.monotonic()
                    helper.shell.run(["true"], deadline=here.deadline)
                    samples["command"].append(time.monotonic() - began)
    return samples, {}


CASES: dict[str, Callable[[int], tuple[Samples, dict[str, float]]]] = {"helper-cold": helper_cold}


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES), nargs="?", default="helper-cold")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    samples, ratio = CASES[given.case](given.rounds)
    said = {
        "case": given.case,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {shutil.disk_usage('/').total >> 30} GiB",
        "date": time.strftime("%Y-%m-%d"),
        "samples": {label: [round(value, 4) for value in values] for label, values in samples.items()},
        "median": {label: round(statistics.median(values), 4) for label, values in samples.items()},
        "ratio": ratio,
    }
    print(json.dumps(said["median"], indent=1))
    if given.out:
        given.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
