"""From a recipe file to a `Recipe`, or to all of its faults at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from composer.errors import BadInput, Fault, RecipeErrors
from composer.recipe.model import File, Recipe, Tls, User, Verify
from composer.recipe.values import SshKey
from composer.recipe.variables import Variables
from composer.resources import recipes_folder
from composer.store.folders import check_utf8

_LARGEST = 2**22
_DEEPEST = 32
_LARGEST_SOURCE = 2**26
# They go into each disk's manifest.
_LARGEST_KEYRINGS = 2**21


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

    def resolve(self, relative: str) -> Path:
        """Return a path that stands in the recipe as a host path: it is relative to the recipe."""
        return host_path(relative, self.path.parent)

    @property
    def output(self) -> Path:
        """Where the disk goes if the command line does not say."""
        return self.resolve(self.recipe.output.path or f"{self.recipe.name}.qcow2")


def host_path(text: str, folder: Path) -> Path:
    """Return a path as a recipe writes it: relative to ``folder``, or with ~; BadInput for no path."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{text!r} names the home of nobody here") from error
    if "\0" in text:
        raise BadInput(f"{text!r} is no path")
    return Path(os.path.normpath(folder / path))


def load_recipe(path: Path, defines: Mapping[str, str]) -> LoadedRecipe:
    """Read, render and check the recipe at ``path``.

    Raises RecipeErrors with every fault found; BadInput when there is nothing to read.
    """
    check_utf8(path.absolute())
    data = _read_toml(path)
    rendered = _render(path, data, defines)
    recipe, faults = _validate(rendered)
    if recipe is None:
        raise RecipeErrors(str(path), faults)
    reader = _HostFiles(path.parent.absolute())
    contents = {file.path: reader.content(file, index) for index, file in enumerate(recipe.files)}
    ssh_keys = {user.name: reader.ssh_keys(user, index) for index, user in enumerate(recipe.users)}
    gpg_keys = reader.gpg_keys(recipe.ostree.verify)
    reader.check_tls(recipe.ostree.tls)
    if reader.faults:
        raise RecipeErrors(str(path), reader.faults, hint="files that a recipe names are relative to it")
    return LoadedRecipe(recipe, path.absolute(), contents, ssh_keys, gpg_keys)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise BadInput(
            f"cannot read the recipe {path}: {error.strerror}",
            hint=f"give the path of a recipe; there is one to begin with in {recipes_folder()}",
        ) from error
    if len(raw) > _LARGEST:
        raise BadInput(f"the recipe {path} is larger than 4 MiB, which no recipe is")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    # ValueError: TOMLDecodeError, UnicodeDecodeError, and int()'s own for a number without end
    except (ValueError, RecursionError) as error:
        raise RecipeErrors(str(path), [Fault("", f"no valid TOML: {error}")]) from error
    if _deeper_than(data, _DEEPEST):
        raise RecipeErrors(str(path), [Fault("", f"tables or lists nested more than {_DEEPEST} deep")])
    return data


def _deeper_than(data: Any, limit: int) -> bool:
    """Tell whether tables and lists are nested deeper; a dotted key makes a table for each of its dots."""
    level = [data]
    for _ in range(limit):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


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


class _HostFiles:
    """Reads the host files that a recipe names, and gathers what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[Fault] = []

    def _read(self, name: str, key: str, largest: int = _LARGEST_SOURCE) -> bytes | None:
        try:
            path = host_path(name, self._folder)
            if not path.is_file():
                self.faults.append(Fault(key, f"no such file: {path}"))
                return None
            if path.stat().st_size > largest:
                self.faults.append(Fault(key, f"larger than {largest // 2**20} MiB: {path}"))
                return None
            return path.read_bytes()
        except BadInput as error:
            self.faults.append(Fault(key, error.message))
        except OSError as error:
            self.faults.append(Fault(key, f"cannot read {name}: {error.strerror}"))
        return None

    def content(self, file: File, index: int) -> bytes:
        """Return what goes into ``file``."""
        if file.source is None:
            return (file.content or "").encode()
        return self._read(file.source, f"files[{index}].source") or b""

    def gpg_keys(self, verify: Verify | None) -> tuple[bytes, ...]:
        """Return the keyrings that commits are verified with."""
        keys = []
        for number, name in enumerate(verify.gpg_keys if verify else ()):
            key = f"ostree.verify.gpg_keys[{number}]"
            raw = self._read(name, key, _LARGEST_KEYRINGS)
            # An OpenPGP packet has its highest bit set (RFC 4880, 4.2); otherwise it is ASCII armour.
            if raw is not None and not (raw[:1] >= b"\x80" or b"BEGIN PGP PUBLIC KEY BLOCK" in raw[:4096]):
                self.faults.append(Fault(key, f"no OpenPGP public key: {name}; gpg --export NAME makes one"))
            keys.append(raw or b"")
        if sum(map(len, keys)) > _LARGEST_KEYRINGS:
            self.faults.append(Fault("ostree.verify.gpg_keys", "together they are larger than 2 MiB"))
        return tuple(keys)

    def check_tls(self, tls: Tls | None) -> None:
        """See whether the files of the client certificate can be read."""
        for name in ("certificate", "key", "ca"):
            path = getattr(tls, name, None)
            if path is not None:
                self._read(path, f"ostree.tls.{name}")

    def ssh_keys(self, user: User, index: int) -> tuple[str, ...]:
        """Return all public keys of ``user``."""
        keys = list(user.ssh_keys)
        check = TypeAdapter(SshKey)
        for number, name in enumerate(user.ssh_key_files):
            key = f"users[{index}].ssh_key_files[{number}]"
            raw = self._read(name, key) or b""
            for line in raw.decode("utf-8", "replace").splitlines():
                if not line.strip() or line.startswith("#"):
                    continue
                try:
                    keys.append(check.validate_python(line))
                except ValidationError as error:
                    self.faults.append(Fault(key, _reason(error.errors()[0])))
                    break
        return tuple(keys)
