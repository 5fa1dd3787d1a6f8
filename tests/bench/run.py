"""`make bench CASE=name OUT=file.json`: measures, prints medians, and writes all samples.

The form of the file: `case`, `machine`, and by label `samples`, `median`, `ratio`.  All samples of a case
come from one run, labels alternating, so that what disturbs one disturbs the others as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.helper import helper_cold, helper_ready
from tests.bench.place import Measured
from tests.bench.transports import transports

CASES: dict[str, Callable[[int], Measured]] = {
    "helper-cold": helper_cold,
    "helper-ready": helper_ready,
    "transports": transports,
}

_ROUNDS = {"transports": 2}


def machine() -> str:
    """Say what was measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return f"{os.cpu_count()} CPUs ({cpu.partition(': ')[2]}), {platform.system()} {platform.release()}"


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES), nargs="?", default="helper-ready")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, help="samples of each label; less where a sample takes minutes")
    given = parser.parse_args()
    measured = CASES[given.case](given.rounds or _ROUNDS.get(given.case, 5))
    said = {
        "case": given.case,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "samples": {
            label: [round(value, 4) for value in values] for label, values in measured.samples.items()
        },
        "median": {label: round(statistics.median(taken), 4) for label, taken in measured.samples.items()},
        "ratio": measured.ratio,
        "figures": measured.figures,
    }
    print(json.dumps({key: said[key] for key in ("median", "ratio", "figures")}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
