"""`composer helper list|warm|rm`."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from composer.cli import show
from composer.cli.options import JobOptions, job_options, session
from composer.cli.recipe import recipe_arguments
from composer.compose.prepare import warm_for
from composer.helper.template import Template, cache_of
from composer.recipe.load import LoadedRecipe
from composer.recipe.values import show_size
from composer.store.cache import Entry
from composer.store.folders import Folders


@click.group()
def helper() -> None:
    """Make, list and remove the templates that helper VMs are cloned from."""


@helper.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_templates(as_json: bool) -> None:
    """List the templates.

    Example:  composer helper list
    """
    entries = list(cache_of(Folders.of(os.environ).cache).entries())
    if as_json:
        show.as_json([_described(entry) for entry in entries])
        return
    show.table(
        "",
        ("key", "bootstrap", "accelerator", "memory", "CPUs", "size", "age", "used"),
        [
            (
                entry.key[:12],
                str(entry.info["inputs"]["bootstrap"])[:12],
                "KVM" if entry.info["inputs"]["accelerator"] == "kvm" else "TCG",
                show_size(entry.info["memory"]),
                str(entry.info["cpus"]),
                show_size(entry.bytes),
                _age(time.time() - entry.info["created"]),
                f"{Template(entry).uses} times",
            )
            for entry in entries
        ],
    )


def _described(entry: Entry) -> dict[str, Any]:
    known = {name: entry.info[name] for name in ("inputs", "memory", "cpus", "created")}
    return {"key": entry.key, "bytes": entry.bytes, "uses": Template(entry).uses, **known}


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@helper.command("warm")
@recipe_arguments
@job_options("vm")
def warm(loaded: LoadedRecipe, job: JobOptions) -> None:
    """Make the template of RECIPE's helper, so that no job has to boot one.

    Example:  composer helper warm recipes/debian-bookworm.toml
    """
    with session(job) as made:
        template = warm_for(made.workshop, loaded)
    show.say(f"{template.entry.key}: {show_size(template.entry.bytes)}, used {template.uses} times")


@helper.command("rm")
@click.argument("key")
def remove(key: str) -> None:
    """Remove the template whose key begins with KEY; running clones of it are not disturbed.

    Example:  composer helper rm 42e5
    """
    removed = cache_of(Folders.of(os.environ).cache).remove(key)
    show.say(f"{removed.key}: removed")
