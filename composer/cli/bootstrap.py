"""`composer bootstrap build|list|rm`."""

from __future__ import annotations

import os
import time

import click

from composer.cli import show
from composer.cli.options import JobOptions, job_options, session
from composer.cli.recipe import recipe_arguments
from composer.compose.prepare import bootstrap_of
from composer.helper.bootstrap import cache_of
from composer.recipe.load import LoadedRecipe
from composer.recipe.values import show_size
from composer.store.folders import Folders


@click.group()
def bootstrap() -> None:
    """Make, list and remove the images that helper VMs boot from."""


@bootstrap.command("build")
@recipe_arguments
@job_options()
def build_image(loaded: LoadedRecipe, job: JobOptions) -> None:
    """Make the bootstrap image for RECIPE, which a build would make anyway.

    Example:  composer bootstrap build recipes/debian-bookworm.toml
    """
    with session(job) as made:
        image = bootstrap_of(made.workshop, loaded)
    how = "made" if image.fresh else "there already"
    show.say(f"{image.entry.key}: {how}, {show_size(image.entry.bytes)}, kernel {image.entry.info['kernel']}")


@bootstrap.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_images(as_json: bool) -> None:
    """List the bootstrap images.

    Example:  composer bootstrap list
    """
    entries = list(cache_of(Folders.of(os.environ).cache).entries())
    if as_json:
        show.as_json([{"key": e.key, "bytes": e.bytes, "last_used": e.last_used, **e.info} for e in entries])
        return
    show.table(
        "",
        ("key", "commit", "kernel", "size", "last used"),
        [
            (
                entry.key,
                str(entry.info["commit"])[:12],
                str(entry.info["kernel"]),
                show_size(entry.bytes),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
            )
            for entry in entries
        ],
    )


@bootstrap.command("rm")
@click.argument("key")
def remove_image(key: str) -> None:
    """Remove the bootstrap image whose key begins with KEY; it is made again when it is needed.

    Example:  composer bootstrap rm 42e5
    """
    removed = cache_of(Folders.of(os.environ).cache).remove(key)
    show.say(f"{removed.key}: removed")
