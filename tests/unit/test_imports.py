"""Imports run one way, and some libraries have one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import composer

HOME = Path(composer.__file__).parent
# From the top down: a part imports of those below it, never of those above.
RANKS = [
    ["cli"],
    ["compose"],
    ["helper"],
    ["export"],
    ["plan"],
    ["disk", "repo"],
    ["recipe"],
    ["store"],
    ["process", "resources"],
    ["events", "deadline"],
    ["errors"],
]
# Each library and the only modules that may import it.
DOORS = {
    "libvirt": {"helper.hypervisor"},
    "libvirt_qemu": {"helper.hypervisor"},
    "paramiko": {"helper.shell"},
    "subprocess": {"process"},
    "cryptography": {"helper.keys", "repo.signatures"},
    "requests": {"repo.upstream"},
    "urllib3": {"repo.upstream"},
    "pydantic": {"recipe.model", "recipe.values", "recipe.load", "disk.manifest"},
    "jinja2": {"recipe.variables", "helper.domain"},
    "tomllib": {"recipe.load"},
    "xml": {"helper.hypervisor"},
}


def name_of(path: Path) -> str:
    """Return a module's name without the package's: 'helper.machine'."""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(HOME.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield all names that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where something comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree: ast.AST) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imported(tree):
        inner = name.removeprefix("composer.")
        if inner == name:
            continue
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def rank(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, parts in enumerate(RANKS) if top in parts)


def test_every_module_has_a_rank() -> None:
    tops = {module.partition(".")[0] for module in MODULES if module not in ("", "__main__")}
    assert tops == {part for parts in RANKS for part in parts}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "__main__")])
def test_imports_run_downwards(module: str) -> None:
    for used in own(MODULES[module]) - {""}:
        same_part = used.partition(".")[0] == module.partition(".")[0]
        assert same_part or rank(used) > rank(module), f"{module} imports {used}, which stands above it"


def test_no_cycles() -> None:
    TopologicalSorter({module: own(tree) - {module} for module, tree in MODULES.items()}).prepare()


@pytest.mark.parametrize("library", DOORS)
def test_doors(library: str) -> None:
    users = {
        module for module, tree in MODULES.items() for name in imported(tree) if name.split(".")[0] == library
    }
    assert users <= DOORS[library]


def test_only_the_command_line_prints_and_exits() -> None:
    for module, tree in MODULES.items():
        if module.split(".")[0] in ("cli", "__main__"):
            continue
        libraries = {name.split(".")[0] for name in imported(tree)}
        assert not libraries & {"click", "rich"}, module
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "exit", "quit", "sys.exit", "os._exit", "input"), (
                f"{module}: {called}"
            )
            raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
            assert not raised.startswith("SystemExit"), module


def test_no_shell_and_no_eval() -> None:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system", "os.popen", "pickle.loads"), (
                    f"{module}: {called}"
                )
                assert not any(word.arg == "shell" for word in node.keywords), f"{module}: shell="
