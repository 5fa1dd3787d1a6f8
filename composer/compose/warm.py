"""`composer helper warm`: makes the templates that a recipe's jobs clone their helpers from."""

from __future__ import annotations

from composer.compose.workshop import Workshop
from composer.helper.lease import HelperShape
from composer.helper.template import Template
from composer.recipe.load import LoadedRecipe


def warm_for(workshop: Workshop, loaded: LoadedRecipe) -> list[Template]:
    """Return the templates of a recipe's helpers, those that were missing made now."""
    recipe = loaded.recipe
    ref = recipe.bootstrap.ref or recipe.ostree.ref
    repo = workshop.repo(recipe.ostree.repo, loaded.path.parent, [ref])
    image = workshop.bootstrap(repo, repo.resolve(ref, workshop.deadline), ())
    with workshop.bench("warm", image) as bench:
        return [
            workshop.warm(bench, HelperShape(recipe.bootstrap.memory, recipe.bootstrap.cpus, network))
            for network in (True, False)
        ]
