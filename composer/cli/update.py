"""`composer update`."""

from __future__ import annotations

from pathlib import Path

import click

from composer.cli.options import PATH, JobOptions, job_options, session, tell_outcome
from composer.cli.recipe import ALLOW_FILE, defines_of
from composer.compose.build import Outcome
from composer.compose.update import Overrides
from composer.compose.update import update as update_disk
from composer.disk.manifest import Flatten
from composer.errors import BadInput
from composer.recipe.load import load_recipe
from composer.recipe.values import show_size


@click.command()
@click.argument("disk", type=PATH)
@click.option(
    "--recipe",
    type=PATH,
    help="Take [ostree] but kargs and remote, [bootstrap] and flatten from this recipe.",
)
@click.option("-D", "define", multiple=True, metavar="NAME=VALUE", help="Set a variable of that recipe.")
@ALLOW_FILE
@click.option("--repo", help="Pull from this repo, a folder or URL, instead of the manifest's.")
@click.option("--ref", help="Follow this ref instead of the manifest's.")
@click.option("--allow-downgrade", is_flag=True, help="Take a commit that is older than the disk's.")
@click.option("--keep", type=click.IntRange(1, 10), help="Deployments to leave on the disk.")
@click.option(
    "--flatten",
    type=click.Choice(["auto", "always"]),
    help="auto: a disk that stands on a base file still does; always: it stands alone.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Also remove what nothing on the disk needs, and give its room back to the host.",
)
@job_options("helper", "disk", "commit", "rewrite")
def update(
    disk: Path,
    recipe: Path | None,
    define: tuple[str, ...],
    allow_file: tuple[Path, ...],
    repo: str | None,
    ref: str | None,
    keep: int | None,
    allow_downgrade: bool,
    flatten: Flatten | None,
    compact: bool,
    job: JobOptions,
) -> None:
    """Bring DISK to the commit that its ref names now.

    What repo, ref and stateroot are, the manifest beside the disk knows.  Only what the disk lacks is
    moved.  Until the new disk is finished and checked, the old one stays as it is.

    Example:  composer update debian-bookworm.qcow2
    """
    if define and recipe is None:
        raise BadInput("-D sets a variable of a recipe, and there is no --recipe")
    loaded = load_recipe(recipe, defines_of(define), allow_file) if recipe else None
    with session(job) as made:
        overrides = Overrides(loaded, repo, ref, keep, flatten, allow_downgrade, compact)
        outcome = update_disk(made.workshop, disk.resolve(), overrides)
        text = (
            f"{disk} is now at commit {outcome.manifest.commit[:12]}, "
            f"{show_size(outcome.bytes_moved)} in {outcome.objects_moved} objects moved, "
            f"{_deployments(outcome)}, {_grown(outcome.growth)}"
            if outcome.changed
            else f"{disk} is at commit {outcome.manifest.commit[:12]} already; nothing to do"
        )
        tell_outcome(made, disk, outcome, text)


def _deployments(outcome: Outcome) -> str:
    kept = f"{len(outcome.manifest.deployments)} deployments"
    gone = ", ".join(deployment.commit[:12] for deployment in outcome.pruned)
    return f"{kept}, {gone} pruned" if gone else kept


def _grown(growth: int) -> str:
    return f"the file {'grew' if growth >= 0 else 'shrank'} by {show_size(abs(growth))}"
