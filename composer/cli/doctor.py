"""`composer doctor`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import click

from composer.cli import show
from composer.compose.doctor import Finding, all_findings
from composer.helper.hypervisor import EMBEDDED
from composer.store.folders import Folders

_MARKS = {"good": ("✓", "green"), "weak": ("!", "yellow"), "bad": ("✗", "red")}


@click.command()
@click.option("--connect", metavar="URI", default=EMBEDDED, show_default=True, help="libvirt connection.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(connect: str, as_json: bool) -> None:
    """Check all that the composer needs of this machine, and tell how to mend what is missing.

    Ends with 1 where something is missing without which jobs fail.

    Example:  composer doctor --json
    """

    def told(finding: Finding) -> None:
        if not as_json:
            mark, colour = _MARKS[finding.state]
            show.say(f"{finding.need}: {finding.found}", mark=mark, colour=colour)
            if finding.mend:
                show.say(f"    try: {finding.mend}")

    findings = all_findings(Folders.of(os.environ), connect, told)
    if as_json:
        show.as_json([asdict(finding) for finding in findings])
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)
