"""`composer inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from composer.cli import show
from composer.cli.options import PATH, JobOptions, job_options, session
from composer.compose.inspect import describe, look_into
from composer.recipe.values import show_size


@click.command()
@click.argument("disk", type=PATH)
@click.option("--deep", is_flag=True, help="Look into the disk itself, from a helper VM.")
@click.option(
    "--fsck",
    is_flag=True,
    help="As --deep, and check the file system, and every object against its checksum.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@job_options("helper", "disk")
def inspect(disk: Path, deep: bool, fsck: bool, as_json: bool, job: JobOptions) -> None:
    """Tell what is on DISK: deployments, commits, ref, sizes, history.

    Example:  composer inspect debian-bookworm.qcow2 --deep --json
    """
    said = describe(disk.resolve())
    if deep or fsck:
        with session(job) as made:
            said["deep"] = look_into(made.workshop, disk.resolve(), fsck=fsck)
    if as_json:
        show.as_json(said)
    else:
        _print(said)


def _print(said: dict[str, Any]) -> None:
    sizes = said["sizes"]
    show.table(
        "",
        ("", ""),
        [
            ("disk", str(said["disk"])),
            ("ref", f"{said['ref']} of {said['repo']}"),
            ("stateroot", said["stateroot"]),
            ("remote", said["remote"] or "none"),
            ("firmware", said["firmware"]),
            ("size", f"{show_size(sizes['virtual'])}, {show_size(sizes['allocated'])} on this host's disk"),
            (
                "unchanged",
                "yes" if said["unchanged"] else "no: it was written to after the composer's last job",
            ),
            *([("written to", f"since it was built, noticed {said['written']}")] if said["written"] else []),
        ],
    )
    show.say()
    deployments = said["deep"]["deployments"] if "deep" in said else said["deployments"]
    show.table(
        "deployments",
        ("#", "commit", "version", "stateroot", "origin"),
        [
            (str(number), item["commit"], item["version"] or "-", item["stateroot"], item["refspec"] or "-")
            for number, item in enumerate(deployments)
        ],
    )
    show.say()
    show.table(
        "history",
        ("when", "what", "commit", "seconds", "moved"),
        [
            (
                deed["time"],
                deed["what"],
                deed["commit"][:12],
                f"{deed['seconds']:.1f}",
                show_size(deed["bytes"]),
            )
            for deed in said["history"]
        ],
    )
    if "deep" in said:
        show.say()
        deep = said["deep"]
        show.table(
            "inside",
            ("", ""),
            [
                ("root used", show_size(deep["root_used"])),
                ("root free", show_size(deep["root_free"])),
                (
                    "file system, objects",
                    "all checked, clean" if deep["fsck"] else "not checked; --fsck does",
                ),
                *(("remote", remote) for remote in deep["remotes"]),
                *(("kargs", kargs) for kargs in deep["kargs"]),
            ],
        )
