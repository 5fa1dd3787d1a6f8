"""`composer repo deltas`: publishes static deltas in a user's repo, for those who pull from it over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from composer.compose.prepare import source_of
from composer.compose.workshop import Workshop
from composer.errors import BadInput, ToolFailed
from composer.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class Published:
    """A static delta that the repo has now."""

    former: str
    commit: str


def publish_deltas(workshop: Workshop, loaded: LoadedRecipe, since: str | None) -> Published:
    """Make the static delta from a recipe's former commit to the one of now, and list it in the summary.

    ``since`` is the former commit, or a ref; the parent of the commit of now if it is None.  Raises BadInput
    where the repo is not ours to write to, or its summary is signed.
    """
    ref, deadline = loaded.recipe.ostree.ref, workshop.deadline
    with source_of(workshop, loaded) as source:
        repo = source.folder
        if repo is None or not repo.servable:
            raise BadInput(
                f"{source.named} is no local archive repo; deltas are made where the repo is kept",
                hint="run it on the machine that has the repo, with its folder in the recipe",
            )
        if (repo.path / "summary.sig").exists():
            raise BadInput(
                f"the summary of {repo.path} is signed, and an update of it would have to be signed too",
                hint=f"ostree --repo={repo.path} static-delta generate --from=OLD --to=NEW"
                f"   and then   ostree --repo={repo.path} summary --update --gpg-sign=KEY",
            )
        commit = repo.resolve(ref, deadline)
        try:
            former = repo.resolve(since or f"{commit}^", deadline)
        except BadInput as error:
            raise BadInput(
                f"{ref} has no former commit in the repo", hint="--from COMMIT   names one"
            ) from error
        with workshop.reporter.phase("static-delta", f"making the delta {former[:12]} to {commit[:12]}"):
            try:
                repo.ostree(
                    "static-delta", "generate", f"--from={former}", f"--to={commit}", deadline=deadline
                )
                repo.ostree("summary", "--update", deadline=deadline)
            except ToolFailed as error:
                raise BadInput(f"the repo {repo.path} takes no delta: {error.message}") from error
        return Published(former, commit)
