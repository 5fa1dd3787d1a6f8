"""docs/reference.md names every verb, option and key, and none that there is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

import composer
from composer.cli.app import cli
from composer.events import Kind
from composer.recipe.model import Recipe

TEXT = (Path(composer.__file__).parents[1] / "docs/reference.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", TEXT)
WORDS = {word for code in CODE for word in re.split(r"[\s,|\\]+", code)}


def verbs(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


VERBS = dict(verbs(cli))
OPTIONS = {
    option
    for verb in VERBS.values()
    for parameter in verb.params
    if isinstance(parameter, click.Option)
    for option in (*parameter.opts, *parameter.secondary_opts)
}


def keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verbs(verb: str) -> None:
    first, _, rest = verb.partition(" ")
    rows = [row for row in TEXT.splitlines() if re.match(rf"\| `{first}[ `]", row)]
    assert any(re.search(rf"\b{rest or first}\b", row) for row in rows)


@pytest.mark.parametrize("option", sorted(OPTIONS - {"--help", "-h"}))
def test_options(option: str) -> None:
    assert option in WORDS


def test_no_option_is_made_up() -> None:
    other = {"--help", "--export"}  # click's, gpg's
    assert {word for word in WORDS if re.fullmatch(r"--[a-z-]+", word)} - other <= OPTIONS


@pytest.mark.parametrize("key", sorted({*keys(Recipe)}))
def test_keys(key: str) -> None:
    assert any(re.search(rf"(^|[\[\].\s]){key}($|[\].\s])", code) for code in CODE)


@pytest.mark.parametrize("kind", Kind.__args__)  # type: ignore[attr-defined]
def test_events(kind: Any) -> None:
    assert f"`{kind}`" in TEXT
