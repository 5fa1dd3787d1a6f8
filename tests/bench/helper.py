"""How long a helper takes until it answers: from cold, as a clone, out of a pool."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.compose.workshop import Bench
from composer.helper.bootstrap import build_bootstrap, cache_of
from composer.helper.lease import Helper, HelperShape, cold_helper, helper_domain, warm_helper
from tests.bench.place import Measured, demo_image, workshop

SHAPE = HelperShape(2**30, 2)


@contextmanager
def _cold(bench: Bench, name: str) -> Iterator[Helper]:
    run = bench.run.part(name)
    domain = helper_domain(bench.image, bench.abilities, SHAPE, run)
    with cold_helper(bench.host, domain, run, workshop().deadline) as helper:
        yield helper


def helper_cold(rounds: int) -> Measured:
    """Cold helper: bootstrap image from nothing, start to first command's result, one more command."""
    samples: dict[str, list[float]] = {"bootstrap": [], "start-to-first-command": [], "command": []}
    here = workshop()
    repo, commit, image = demo_image(here)
    with here.bench("bench", image) as bench:
        for number in range(rounds):
            with tempfile.TemporaryDirectory(prefix="bench.", dir="/var/tmp") as empty:
                began = time.monotonic()
                build_bootstrap(cache_of(Path(empty)), repo, commit, here.deadline)
                samples["bootstrap"].append(time.monotonic() - began)
            began = time.monotonic()
            with _cold(bench, str(number)) as helper:
                helper.shell.run(["true"], deadline=here.deadline)
                samples["start-to-first-command"].append(time.monotonic() - began)
                for _ in range(5):
                    began = time.monotonic()
                    helper.shell.run(["true"], deadline=here.deadline)
                    samples["command"].append(time.monotonic() - began)
    return Measured(samples)


def helper_ready(rounds: int) -> Measured:
    """Cold, warm and pooled helpers, alternating, each to the result of its first command."""
    samples: dict[str, list[float]] = {"cold": [], "warm": [], "pooled": []}
    here = workshop()
    _, _, image = demo_image(here)
    with here.bench("bench", image) as bench, here.pool(bench, SHAPE, spares=2) as pool:
        template = here.warm(bench, SHAPE)
        pool.wait_until_full(here.deadline)
        awake, paused = [], []
        for number in range(rounds):
            began = time.monotonic()
            with _cold(bench, f"c{number}") as helper:
                helper.shell.run(["true"], deadline=here.deadline)
                samples["cold"].append(time.monotonic() - began)
            # Several warm and pooled ones to a cold one: they are short, and the noise is not.
            for again in range(4):
                run = bench.run.part(f"w{number}{again}")
                domain = helper_domain(image, bench.abilities, SHAPE, run)
                began = time.monotonic()
                with warm_helper(bench.host, domain, template, run, here.deadline) as helper:
                    helper.shell.run(["true"], deadline=here.deadline)
                    samples["warm"].append(time.monotonic() - began)
            for _ in range(4):
                pool.wait_until_full(here.deadline)
                smaller, larger = sorted(_pss(pid) for pid in bench.run.qemu_pids())
                paused.append(smaller)
                awake.append(larger)
                began = time.monotonic()
                with pool.lease(here.deadline) as helper:
                    helper.shell.run(["true"], deadline=here.deadline)
                    samples["pooled"].append(time.monotonic() - began)
                    # The next spare is made beside this lease; wait for it, or it disturbs what follows.
                    pool.wait_until_full(here.deadline)
    cold, warm = statistics.median(samples["cold"]), statistics.median(samples["warm"])
    return Measured(
        samples,
        {"cold/warm": round(cold / warm, 2)},
        {
            "state-bytes": float(template.state.stat().st_size),
            "ram-file-bytes": float(template.ram.stat().st_blocks * 512),
            "paused-pss-bytes": statistics.median(paused),
            "awake-pss-bytes": statistics.median(awake),
        },
    )


def _pss(pid: int) -> float:
    """Return the proportional set size of a process, in bytes."""
    found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024.0
