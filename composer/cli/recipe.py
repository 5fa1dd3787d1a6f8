"""`composer recipe check|show|schema`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from composer.cli import show
from composer.cli.options import PATH
from composer.errors import BadInput
from composer.recipe.load import load_recipe
from composer.recipe.model import Recipe


def defines_of(define: tuple[str, ...]) -> dict[str, str]:
    """Return the variables given as -D name=value."""
    pairs = [text.partition("=") for text in define]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise BadInput(f"-D wants name=value, not {name + equals!r}", hint="-D version=12")
    return {name: value for name, _, value in pairs}


def recipe_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the argument RECIPE and the option -D."""
    command = click.option(
        "-D", "define", multiple=True, metavar="NAME=VALUE", help="Set a variable of the recipe."
    )(command)
    return click.argument("recipe", type=PATH)(command)


@click.group()
def recipe() -> None:
    """Check and show recipes."""


@recipe.command()
@recipe_arguments
def check(recipe: Path, define: tuple[str, ...]) -> None:
    """Tell all faults of RECIPE at once.

    Example:  composer recipe check recipes/debian-bookworm.toml
    """
    load_recipe(recipe, defines_of(define))
    click.echo(f"{recipe}: good")


@recipe.command("show")
@recipe_arguments
def show_recipe(recipe: Path, define: tuple[str, ...]) -> None:
    """Print RECIPE with its defaults and variables filled in, as JSON; password hashes are left out.

    Example:  composer recipe show recipes/debian-bookworm.toml -D greeting=Hello
    """
    said = load_recipe(recipe, defines_of(define)).recipe.model_dump(mode="json")
    for user in said["users"]:
        user["password_hash"] = "(set)" if user["password_hash"] else None
    show.as_json(said)


@recipe.command()
def schema() -> None:
    """Print the JSON schema of recipes.

    Example:  composer recipe schema > recipe.schema.json
    """
    show.as_json(Recipe.model_json_schema())
