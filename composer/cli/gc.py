"""`composer gc`."""

from __future__ import annotations

import click

from composer.cli import show
from composer.cli.options import JobOptions, job_options, session
from composer.compose.gc import collect
from composer.recipe.values import show_size


@click.command()
@click.option("--dry-run", is_flag=True, help="Tell what would be removed, and remove nothing.")
@click.option(
    "--older-than",
    # What was used within a day a running job may be about to open.
    type=click.FloatRange(min=1),
    metavar="DAYS",
    help="Also what was not used for so long, a day or more: images, templates, delta disks, commits, logs.",
)
@job_options("libvirt")
def gc(dry_run: bool, older_than: float | None, job: JobOptions) -> None:
    """Remove what no job can use any more: leftovers of killed composers, unreachable templates.

    Example:  composer gc --older-than 14
    """
    with session(job) as made:
        freed = collect(made.workshop, older_than, dry=dry_run)
    show.say(f"{show_size(freed)} {'would be ' if dry_run else ''}freed")
