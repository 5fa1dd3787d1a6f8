"""From a recipe file to a `Recipe`, or to all of its faults at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from composer.errors import BadInput, Fault, RecipeErrors
from composer.recipe.hostfiles import HostFile, HostFiles, host_path
from composer.recipe.model import Recipe
from composer.recipe.variables import Variables
from composer.resources import recipes_folder
from composer.store.files import read_file
from composer.store.folders import check_utf8

_LARGEST = 2**20
_MOST_VALUES = 20_000
_DEEPEST = 32
# A dotted key of more parts: Python's tomllib takes time that grows with their square.
_PART = r"""(?:[A-Za-z0-9_-]{1,99}|"[^"\n]{0,99}"|'[^'\n]{0,99}')"""
_LONG_KEY = re.compile(
    rf"(?m)(?:^|[\[{{,])[ \t]{{0,99}}(?:{_PART}[ \t]{{0,9}}\.[ \t]{{0,9}}){{{2 * _DEEPEST}}}"
)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, where it stood, and the content of the host files that it names."""

    recipe: Recipe
    path: Path
    contents: dict[str, bytes]
    """What goes into each product path of ``recipe.files``."""
    ssh_keys: dict[str, tuple[str, ...]]
    """The public keys of each user, inline ones and those from files."""
    gpg_keys: tuple[bytes, ...] = ()
    """The keyrings that commits are verified with."""
    host_files: tuple[HostFile, ...] = ()
    """All that was read besides the recipe."""

    def resolve(self, relative: str) -> Path:
        """Return a path that stands in the recipe as a host path: it is relative to the recipe."""
        return host_path(relative, self.path.parent)

    @property
    def output(self) -> Path:
        """Where the disk goes if the command line does not say."""
        return self.resolve(self.recipe.output.path or f"{self.recipe.name}.qcow2")


def load_recipe(path: Path, defines: Mapping[str, str], allowed: Collection[Path] = ()) -> LoadedRecipe:
    """Read, render and check the recipe at ``path``.

    Host files outside its folder are read if they are public by their form, or among ``allowed``.  Raises
    RecipeErrors with every fault found; BadInput when there is nothing to read.
    """
    check_utf8(path.absolute())
    data = _read_toml(path)
    rendered = _render(path, data, defines)
    recipe, faults = _validate(rendered)
    if recipe is None:
        raise RecipeErrors(str(path), faults)
    reader = HostFiles(path.parent.absolute(), allowed)
    contents = {file.path: reader.content(file, index) for index, file in enumerate(recipe.files)}
    ssh_keys = {user.name: reader.ssh_keys(user, index) for index, user in enumerate(recipe.users)}
    gpg_keys = reader.gpg_keys(recipe.ostree.verify)
    reader.check_tls(recipe.ostree.tls)
    if reader.faults:
        raise RecipeErrors(str(path), reader.faults, hint="files that a recipe names are relative to it")
    return LoadedRecipe(recipe, path.absolute(), contents, ssh_keys, gpg_keys, tuple(reader.read))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = read_file(path, _LARGEST, links=True)
    except (BadInput, OSError) as error:
        why = error.message if isinstance(error, BadInput) else error.strerror
        raise BadInput(
            f"cannot read the recipe {path}: {why}",
            hint=f"give the path of a recipe; there is one to begin with in {recipes_folder()}",
        ) from error
    try:
        text = raw.decode("utf-8")
        if found := _LONG_KEY.search(text):
            line = text.count("\n", 0, found.start()) + 1
            why = f"line {line}: what looks like a dotted key has more than {2 * _DEEPEST} parts"
            raise RecipeErrors(str(path), [Fault("", why)])
        data = tomllib.loads(text)
    # ValueError: TOMLDecodeError, UnicodeDecodeError, and int()'s own for a number without end
    except (ValueError, RecursionError) as error:
        raise RecipeErrors(str(path), [Fault("", f"no valid TOML: {error}")]) from error
    if why := _too_much(data):
        raise RecipeErrors(str(path), [Fault("", why)])
    return data


def _too_much(data: Any) -> str | None:
    """Return why a recipe's data is more than a recipe can be; None if it is not.

    A dotted key makes a table for each of its dots.
    """
    level, values = [data], 0
    for _ in range(_DEEPEST):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        values += sum(map(len, inner))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if values > _MOST_VALUES:
            return f"more than {_MOST_VALUES} values"
        if not level:
            return None
    return f"tables or lists nested more than {_DEEPEST} deep"


def _render(path: Path, data: dict[str, Any], defines: Mapping[str, str]) -> dict[str, Any]:
    own = data.get("variables")
    defaults = {k: v for k, v in own.items() if isinstance(v, str)} if isinstance(own, dict) else {}
    known = {"date": date.today().strftime("%Y%m%d"), **defaults}
    variables = Variables({**known, **defines})
    rendered = {
        key: value if key == "variables" else variables.apply(value, key) for key, value in data.items()
    }
    # A text with a fault may be the one that it is for.
    for name in sorted(set(defines) - variables.used - set(known)) if not variables.faults else ():
        variables.faults.append(Fault(f"-D {name}", "the recipe has no such variable"))
    # Faults of variables and of the schema are told together; an unrendered text may be a schema
    # fault as well, so those keys are told once.
    if variables.faults:
        _, faults = _validate(rendered)
        told = {fault.key for fault in variables.faults}
        raise RecipeErrors(str(path), [*variables.faults, *(f for f in faults if f.key not in told)])
    return rendered


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[Fault]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, [Fault(_key(e["loc"]), _reason(e)) for e in error.errors(include_url=False)]


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "this key is needed"
    message: str = error["msg"]
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
