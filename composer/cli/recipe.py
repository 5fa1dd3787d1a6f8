"""`composer recipe check|show|schema`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from composer.cli import show
from composer.cli.options import PATH
from composer.errors import BadInput
from composer.recipe.load import LoadedRecipe, load_recipe
from composer.recipe.model import Recipe


def defines_of(define: tuple[str, ...]) -> dict[str, str]:
    """Return the variables given as -D name=value."""
    pairs = [text.partition("=") for text in define]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise BadInput(f"-D wants name=value, not {name + equals!r}", hint="-D version=12")
    return {name: value for name, _, value in pairs}


ALLOW_FILE = click.option(
    "--allow-file", multiple=True, type=PATH, metavar="PATH",
    help="Let the recipe read this file, which lies outside its folder.",
)  # fmt: skip


def recipe_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the argument RECIPE and its options; it gets the recipe as ``loaded``."""

    @functools.wraps(command)
    def wrapped(*, recipe: Path, define: tuple[str, ...], allow_file: tuple[Path, ...], **more: Any) -> None:
        command(loaded=load_recipe(recipe, defines_of(define), allow_file), **more)

    define = click.option(
        "-D", "define", multiple=True, metavar="NAME=VALUE", help="Set a variable of the recipe."
    )
    return click.argument("recipe", type=PATH)(define(ALLOW_FILE(wrapped)))


@click.group()
def recipe() -> None:
    """Check and show recipes."""


@recipe.command()
@recipe_arguments
def check(loaded: LoadedRecipe) -> None:
    """Tell all faults of RECIPE at once.

    Example:  composer recipe check recipes/debian-bookworm.toml
    """
    show.say(f"{loaded.path}: good")


@recipe.command("show")
@recipe_arguments
def show_recipe(loaded: LoadedRecipe) -> None:
    """Print RECIPE with its defaults and variables filled in, as JSON; password hashes are left out.

    `host_files` lists the files of this host that it names: by which key, where they lie, how large they are.

    Example:  composer recipe show recipes/debian-bookworm.toml -D greeting=Hello
    """
    said = loaded.recipe.model_dump(mode="json")
    for user in said["users"]:
        user["password_hash"] = "(set)" if user["password_hash"] else None
    files = [{"key": file.key, "file": str(file.path), "bytes": file.bytes} for file in loaded.host_files]
    show.as_json({**said, "host_files": files})


@recipe.command()
def schema() -> None:
    """Print the JSON schema of recipes.

    Example:  composer recipe schema > recipe.schema.json
    """
    show.as_json(Recipe.model_json_schema())
