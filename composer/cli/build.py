"""`composer build`."""

from __future__ import annotations

from pathlib import Path

import click

from composer.cli.options import PATH, JobOptions, job_options, session, tell_outcome
from composer.cli.recipe import recipe_arguments
from composer.compose.build import build as build_disk
from composer.recipe.load import LoadedRecipe
from composer.recipe.values import show_size


@click.command()
@recipe_arguments
@click.option("-o", "--output", type=PATH, help="Where the disk goes, instead of where the recipe says.")
@click.option(
    "--force",
    is_flag=True,
    help="Build even where nothing changed, and replace a disk with all that is lost then.",
)
@click.option("--allow-downgrade", is_flag=True, help="Take a commit older than one its ref named before.")
@job_options("helper", "disk", "commit")
def build(
    loaded: LoadedRecipe, output: Path | None, force: bool, allow_downgrade: bool, job: JobOptions
) -> None:
    """Make a bootable disk from RECIPE.

    The same recipe and commit again is a no-op.

    Example:  composer build recipes/debian-bookworm.toml -o disk.qcow2
    """
    disk = (output or loaded.output).resolve()
    with session(job) as made:
        outcome = build_disk(made.workshop, loaded, disk, force=force, allow_downgrade=allow_downgrade)
        text = (
            f"{disk} has commit {outcome.manifest.commit[:12]}, "
            f"{show_size(outcome.bytes_moved)} in {outcome.objects_moved} objects moved"
            if outcome.changed
            else f"{disk} has this recipe's commit {outcome.manifest.commit[:12]} already; nothing to do"
        )
        tell_outcome(made, disk, outcome, text)
