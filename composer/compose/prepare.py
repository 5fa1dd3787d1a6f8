"""What a recipe's helpers are made from: its repo, the bootstrap image, the template."""

from __future__ import annotations

from contextlib import AbstractContextManager

from composer.compose.source import RepoSource
from composer.compose.workshop import Workshop
from composer.helper.bootstrap import BootstrapImage
from composer.helper.lease import HelperShape
from composer.helper.template import Template
from composer.plan import trust_of
from composer.recipe.load import LoadedRecipe
from composer.repo.upstream import Tls


def warm_for(workshop: Workshop, loaded: LoadedRecipe) -> Template:
    """Return the template of a recipe's helpers, made now if need be."""
    recipe = loaded.recipe
    image = bootstrap_of(workshop, loaded)
    with workshop.bench("warm", image) as bench:
        return workshop.warm(bench, HelperShape(recipe.bootstrap.memory, recipe.bootstrap.cpus))


def bootstrap_of(workshop: Workshop, loaded: LoadedRecipe) -> BootstrapImage:
    """Return the bootstrap image of a recipe's helper, made now if need be."""
    ref = loaded.recipe.bootstrap.ref or loaded.recipe.ostree.ref
    with source_of(workshop, loaded) as source:
        commit = source.resolve(ref)
        return workshop.bootstrap(workshop.fetch(source, ref, commit), commit, ())


def source_of(workshop: Workshop, loaded: LoadedRecipe) -> AbstractContextManager[RepoSource]:
    """Open the repo that a recipe names, with its keys and certificates."""
    ostree = loaded.recipe.ostree
    files = ostree.tls.model_dump(exclude_none=True) if ostree.tls else {}
    tls = Tls(**{name: loaded.resolve(path) for name, path in files.items()})
    return workshop.source(ostree.repo, loaded.path.parent, trust_of(loaded), tls)
