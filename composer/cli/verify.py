"""`composer verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from composer.cli import show
from composer.cli.options import PATH, JobOptions, job_options, session
from composer.compose.verify import verify as verify_disk


@click.command()
@click.argument("disk", type=PATH)
@click.option("--firmware", type=click.Choice(["auto", "bios", "uefi", "all"]), default="auto",
              show_default=True, help="auto: the first that the disk has.")  # fmt: skip
@click.option("--evidence", type=PATH, help="Where console and screenshot of a failed boot go.")
@job_options("helper", "disk")
def verify(disk: Path, firmware: str, evidence: Path | None, job: JobOptions) -> None:
    """Boot DISK and prove that it runs the commit it claims.

    The boot runs on a throw-away overlay, without a network.  It must come up in the default deployment,
    reach its boot target, and have no failed unit.

    Example:  composer verify debian-bookworm.qcow2 --firmware all
    """
    with session(job) as made:
        boots = verify_disk(made.workshop, disk.resolve(), firmware, evidence)
        lines = [
            f"{disk} under {boot.firmware}: runs {boot.commit[:12]}, {boot.target.split()[0]} reached, "
            f"no failed unit, {boot.uptime:.0f} s after the kernel's start"
            for boot in boots
        ]
        made.workshop.reporter.result("job", "; ".join(lines), boots=[asdict(boot) for boot in boots])
    show.timings(made.timings())
    for line in lines:
        show.say(line)
