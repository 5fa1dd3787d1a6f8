"""`composer repo deltas`."""

from __future__ import annotations

import click

from composer.cli import show
from composer.cli.options import JobOptions, job_options, session
from composer.cli.recipe import recipe_arguments
from composer.compose.deltas import publish_deltas
from composer.recipe.load import LoadedRecipe


@click.group()
def repo() -> None:
    """Work on the OSTree repo that a recipe names."""


@repo.command("deltas")
@recipe_arguments
@click.option("--from", "since", metavar="COMMIT", help="The former commit or ref; its parent if left out.")
@job_options()
def deltas(loaded: LoadedRecipe, since: str | None, job: JobOptions) -> None:
    """Publish a static delta to RECIPE's commit, for all who pull from its repo over HTTP.

    Example:  composer repo deltas recipes/debian-bookworm.toml
    """
    with session(job) as made:
        published = publish_deltas(made.workshop, loaded, since)
    show.say(f"delta from {published.former[:12]} to {published.commit[:12]} published")
