"""Nothing that comes from a disk, a repo or a guest commands the user's terminal."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import composer
from composer.cli import show
from composer.disk.manifest import manifest_path
from composer.store.cache import Cache
from composer.store.folders import Folders
from composer.store.locks import locked
from composer.store.work import lock_path

Composer = Callable[..., subprocess.CompletedProcess[str]]
# A title, a cleared screen, an overwritten line, a changed direction, a C1 control, and text like markup.
EVIL = "\x1b]0;owned\x07\x1b[2J\rok\u202e\x9b31m[bold]"
COMMANDS = set("\x1b\x07\r\u202e\x9b\x08")
CLI = Path(composer.__file__).parent / "cli"


def harmless(text: str) -> None:
    assert "[bold]" in text, "what was planted must have been shown"
    assert COMMANDS & set(text) == set()


def called_in(module: str) -> set[str]:
    tree = ast.parse((CLI / f"{module}.py").read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("module", sorted(path.stem for path in CLI.glob("*.py")))
def test_one_module_writes_to_the_terminal(module: str) -> None:
    called = called_in(module)
    writers = {"click.echo", "click.secho", "print", "traceback.print_exc"}
    writers |= {name for name in called if name.startswith(("sys.stdout.", "sys.stderr."))}
    assert called & writers - {"sys.stderr.isatty"} == ({"click.echo"} if module == "show" else set())


@pytest.fixture
def hostile_disk(good_disk: Path) -> Path:
    said = json.loads(manifest_path(good_disk).read_text())
    said |= {"recipe": f"/{EVIL}", "repo": f"/{EVIL}"}
    said["deployments"][0] |= {"version": EVIL, "refspec": EVIL}
    manifest_path(good_disk).write_text(json.dumps(said))
    return good_disk


def test_what_a_manifest_says(composer: Composer, hostile_disk: Path) -> None:
    harmless(composer("inspect", hostile_disk).stdout)
    assert not COMMANDS & set(composer("inspect", hostile_disk, "--json").stdout)
    done = composer("update", hostile_disk)
    harmless(done.stdout + done.stderr)


def test_what_a_locks_holder_says(composer: Composer, good_disk: Path) -> None:
    with locked(lock_path(good_disk), purpose=EVIL, what="it"):
        harmless(composer("update", good_disk).stderr)


def test_what_a_run_says(composer: Composer, places: Path) -> None:
    run = places / "c1234"
    run.mkdir(mode=0o700)
    (run / "vm.json").write_text(json.dumps({"purpose": EVIL, "since": 1}))
    harmless(composer("vm", "list").stdout)


@pytest.mark.parametrize(
    ("kind", "verb", "info"),
    [
        ("bootstrap", ["bootstrap", "list"], {"kernel": EVIL, "commit": EVIL}),
        (
            "template",
            ["helper", "list"],
            {"memory": 1, "cpus": EVIL, "inputs": {"bootstrap": EVIL, "accelerator": EVIL}},
        ),
    ],
)
def test_what_a_cache_entry_says(
    composer: Composer, places: Path, kind: str, verb: list[str], info: dict[str, object]
) -> None:
    home = Folders.of(os.environ).cache / kind / "ab12"
    home.mkdir(parents=True)
    (home / "uses").touch()
    (home / "info.json").write_text(json.dumps({"created": 1.0, **info}))
    assert [entry.key for entry in Cache(home.parent.parent, kind).entries()] == ["ab12"]
    done = composer(*verb)
    assert "ab12" in done.stdout, done.stderr
    assert COMMANDS & set(done.stdout) == set()


def test_what_a_recipe_says(composer: Composer, tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(f'name = "x"\n[ostree]\nref = "a"\nrepo = {json.dumps(EVIL)}\n')
    assert not COMMANDS & set(composer("recipe", "show", path).stdout)
    done = composer("build", path)
    harmless(done.stdout + done.stderr)
    path.write_text(f"{json.dumps(EVIL)} = 1\n")
    done = composer("recipe", "check", path)
    harmless(done.stdout + done.stderr)


def test_an_error_keeps_its_lines_and_a_cell_has_but_one(capsys: pytest.CaptureFixture[str]) -> None:
    show.say("one\ntwo")
    show.table("", ("a",), [("three\nfour",)])
    assert capsys.readouterr().out.splitlines()[:2] == ["one", "two"]
    assert show.plain("a\tb\N{NO-BREAK SPACE}c") == "a       b c"
    assert show.plain("three\nfour", lines=False) == "three\N{REPLACEMENT CHARACTER}four"


WRITES = "import sys; from composer.cli import show; show.output(sys.argv[1].encode(), raw=len(sys.argv) > 2)"


def on_a_terminal(*argv: str) -> str:
    """Run Python on a terminal of its own; return what came there."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", WRITES, *argv], stdout=theirs, check=True)
    os.close(theirs)
    return "".join(chunks(ours))


def chunks(descriptor: int) -> Iterator[str]:
    try:
        while chunk := os.read(descriptor, 4096):
            yield chunk.decode("utf-8", "replace")
    except OSError:  # the other end is closed (EIO)
        os.close(descriptor)


def test_what_a_guest_writes_is_made_plain_on_a_terminal_alone() -> None:
    assert not (COMMANDS - {"\r"}) & set(on_a_terminal(EVIL))
    assert "\x1b" in on_a_terminal(EVIL, "raw")
    piped = subprocess.run([sys.executable, "-c", WRITES, EVIL], capture_output=True, check=True).stdout
    assert piped == EVIL.encode()
