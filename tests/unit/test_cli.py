"""The command line as users meet it: exit codes, one clear error with the way out, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from composer.cli.app import cli
from composer.disk.manifest import manifest_path
from composer.resources import recipes_folder
from composer.store.locks import locked
from tests.unit.test_inuse import opened

Composer = Callable[..., subprocess.CompletedProcess[str]]
Fake = Callable[[str, str], Path]
RECIPE = 'name = "demo"\n[ostree]\nrepo = "{repo}"\nref = "os/good"\n'
SECRET_HASH = "$6$salt$thisIsTheHash"


def verbs(group: click.Group = cli, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, (*above, name))
        else:
            yield (*above, name)


def recipe(folder: Path, repo: Path | str = "repo", more: str = "") -> Path:
    path = folder / "demo.toml"
    path.write_text(RECIPE.format(repo=repo) + more)
    return path


def bad_input(done: subprocess.CompletedProcess[str], *told: str) -> None:
    """Hold an ending against what bad input must look like."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for text in told:
        assert text in done.stderr


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_help_has_an_example(composer: Composer, verb: tuple[str, ...]) -> None:
    done = composer(*verb, "--help")
    assert done.returncode == 0
    assert f"Example:  composer {' '.join(verb)}" in done.stdout


def test_verbs(composer: Composer) -> None:
    shown = composer("--help").stdout
    for verb in ("build", "update", "verify", "inspect", "recipe", "bootstrap", "vm", "doctor"):
        assert verb in shown
    assert composer("--version").stdout.startswith("composer, version ")


@pytest.mark.parametrize(
    "argv",
    [["nothing"], ["build"], ["build", "--no-such"], ["vm", "list", "x"], ["gc", "--older-than", "0.5"], []],
)
def test_wrong_use(composer: Composer, argv: list[str]) -> None:
    done = composer(*argv)
    assert done.returncode == 2
    assert "Usage: " in done.stderr


@pytest.mark.parametrize("verb", ["update", "verify", "inspect"])
def test_disk_that_cannot_be_used(composer: Composer, tmp_path: Path, verb: str) -> None:
    bad_input(composer(verb, tmp_path / "none.qcow2"), "no such disk", "try:", "composer build RECIPE")
    raw = tmp_path / "disk.img"
    raw.write_bytes(b"\xeb\x63\x90" * 1000)
    bad_input(composer(verb, raw), "no qcow2 disk", "try:", "qemu-img convert -f raw")
    bare = tmp_path / "bare.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", bare, "8M"], check=True)
    bad_input(composer(verb, bare), "has no manifest", "try:", "bare.qcow2.manifest.json")
    manifest_path(bare).write_text("{")
    bad_input(composer(verb, bare), "is damaged")


@pytest.mark.parametrize("verb", ["update", "verify", "inspect"])
def test_disk_on_a_file_elsewhere(composer: Composer, tmp_path: Path, good_disk: Path, verb: str) -> None:
    overlay = tmp_path / "elsewhere/disk.qcow2"
    overlay.parent.mkdir()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", good_disk, overlay], check=True
    )
    shutil.copy(manifest_path(good_disk), manifest_path(overlay))
    bad_input(composer(verb, overlay), "outside its own folder", "try:", "qemu-img convert")


@pytest.mark.parametrize("verb", ["update", "verify"])
def test_locked_disk(composer: Composer, good_disk: Path, verb: str) -> None:
    with locked(good_disk.with_name(f".{good_disk.name}.lock"), purpose="a long job", what="it"):
        done = composer(verb, good_disk)
    assert done.returncode == 1
    assert f"pid {os.getpid()}" in done.stderr
    assert "a long job" in done.stderr
    assert "try:" in done.stderr


def test_a_disk_that_a_vm_runs(composer: Composer, tmp_path: Path, good_disk: Path, tiny_repo: Path) -> None:
    before = good_disk.read_bytes()
    build = recipe(tmp_path, tiny_repo)
    with opened(good_disk):
        for argv in (["update", good_disk, "--compact"], ["build", build, "-o", good_disk, "--force"]):
            done = composer(*argv)
            assert done.returncode == 1
            assert "in use by a running VM" in done.stderr
            assert "try:" in done.stderr
    assert good_disk.read_bytes() == before


def test_update_of_a_disk_that_is_up_to_date(composer: Composer, good_disk: Path) -> None:
    before = good_disk.read_bytes()
    done = composer("update", good_disk)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert good_disk.read_bytes() == before
    assert {path.name for path in good_disk.parent.iterdir() if "good" in path.name} == {
        good_disk.name,
        manifest_path(good_disk).name,
    }


def test_inspect(composer: Composer, good_disk: Path) -> None:
    said = json.loads(composer("inspect", good_disk, "--json").stdout)
    assert said["ref"] == "os/good"
    assert said["unchanged"] is True
    assert said["sizes"]["virtual"] == 2**23
    shown = composer("inspect", good_disk).stdout
    assert said["commit"][:12] in shown
    os.utime(good_disk)
    assert json.loads(composer("inspect", good_disk, "--json").stdout)["unchanged"] is False


def test_inspect_shows_no_control_characters(composer: Composer, good_disk: Path) -> None:
    said = json.loads(manifest_path(good_disk).read_text())
    said["deployments"][0]["version"] = "\x1b]0;evil\x07[bold]x[/]"
    manifest_path(good_disk).write_text(json.dumps(said))
    shown = composer("inspect", good_disk).stdout
    assert "\x1b" not in shown
    assert "[bold]x[/]" in shown


def test_recipe_with_faults(composer: Composer, tmp_path: Path) -> None:
    path = recipe(tmp_path, more='surprise = 1\nkeep = "2"\n[[files]]\npath = "/usr/x"\ncontent = ""\n')
    for verb in (["recipe", "check"], ["recipe", "show"], ["build"], ["bootstrap", "build"]):
        bad_input(composer(*verb, path), "3 faults", f"{path}: ostree.surprise: unknown key",
                  "ostree.keep: ", "files[0].path: ", "try:", "composer recipe schema")  # fmt: skip


@pytest.mark.parametrize("define", ["x", "=1", "a b=1", "1a=2", "-=1"])
def test_bad_define(composer: Composer, tmp_path: Path, define: str) -> None:
    bad_input(composer("recipe", "check", recipe(tmp_path), "-D", define), "-D wants name=value", "try:")


def test_a_define_that_nothing_wants(composer: Composer, tmp_path: Path) -> None:
    path = recipe(tmp_path, more='stateroot = "{{ root }}"\n[variables]\nspare = "x"\n')
    bad_input(composer("recipe", "check", path, "-D", "root=x", "-D", "rot=y"), "-D rot: the recipe has no")
    given = ("-D", "root=x", "-D", "spare=y", "-D", "date=z")
    assert composer("recipe", "check", path, *given).returncode == 0
    bad_input(composer("update", tmp_path / "none.qcow2", "-D", "root=x"), "there is no --recipe")


def test_recipe_check(composer: Composer, tmp_path: Path) -> None:
    path = recipe(tmp_path, more='stateroot = "{{ name }}"\n')
    bad_input(composer("recipe", "check", path), "'name' is undefined")
    assert composer("recipe", "check", path, "-D", "name=x").returncode == 0
    assert composer("recipe", "check", recipes_folder() / "debian-bookworm.toml").returncode == 0
    bad_input(composer("recipe", "check", tmp_path / "none.toml"), "cannot read the recipe", "try:")


def test_recipe_show_hides_hashes(composer: Composer, tmp_path: Path) -> None:
    user = f'[[users]]\nname = "me"\npassword_hash = "{SECRET_HASH}"\n[[users]]\nname = "you"\n'
    done = composer("recipe", "show", recipe(tmp_path, more=user))
    assert done.returncode == 0
    assert "thisIsTheHash" not in done.stdout
    said = json.loads(done.stdout)
    assert [each["password_hash"] for each in said["users"]] == ["(set)", None]
    assert said["disk"]["size"] == 2**32


def test_recipe_schema(composer: Composer) -> None:
    schema = json.loads(composer("recipe", "schema").stdout)
    assert schema["type"] == "object"
    assert "ostree" in schema["required"]


def test_no_images_and_no_machines(composer: Composer) -> None:
    assert composer("bootstrap", "list").returncode == 0
    assert json.loads(composer("bootstrap", "list", "--json").stdout) == []
    bad_input(composer("bootstrap", "rm", "42"), "no bootstrap entries")
    assert composer("vm", "list").returncode == 0
    assert json.loads(composer("vm", "list", "--json").stdout) == []
    assert composer("vm", "rm").stdout == "no leftovers\n"
    for verb in ("ssh", "console", "rm"):
        bad_input(composer("vm", verb, "c1"), "no helper VMs", "try:", "composer vm list")


def test_build_of_what_cannot_be_built(composer: Composer, tmp_path: Path, tiny_repo: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    bad_input(composer("build", recipe(tmp_path, "nowhere")), "is no OSTree repo", "try:", "ostree init")
    good = recipe(tmp_path, tiny_repo)
    bad_input(composer("build", good, "-o", tmp_path / "none/disk"), "no such folder", "try:", "mkdir -p")
    disk.write_bytes(b"precious")
    bad_input(composer("build", good, "-o", disk), "has no manifest", "--force")
    assert disk.read_bytes() == b"precious"
    disk.unlink()
    for ref, why in (("none", "has no ref"), ("no-kernel", "no kernel"), ("no-initramfs", "no initramfs")):
        text = good.read_text().replace("os/good", f"os/{ref}")
        (tmp_path / "other.toml").write_text(text)
        bad_input(composer("build", tmp_path / "other.toml", "-o", disk), why)
    small = recipe(tmp_path, tiny_repo, "[disk]\nsize = '256 MiB'\n[bootstrap]\nmemory = '1 KiB'\n")
    bad_input(composer("build", small, "-o", disk), "bootstrap: memory is between")
    assert not disk.exists()


def test_missing_tool(
    composer: Composer, tmp_path: Path, good_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bad_input(composer("update", good_disk), "'ostree' is not installed", "try:", "apt install ostree")


def test_events(composer: Composer, tmp_path: Path, good_disk: Path) -> None:
    assert composer("update", good_disk, "--events", tmp_path / "events").returncode == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["phase-start", "phase-end", "result"]
    assert all(abs(event["time"] - time.time()) < 60 for event in events)
    assert events[1]["data"]["seconds"] >= 0
    assert events[2]["data"]["changed"] is False
    bad_input(composer("update", good_disk, "--events", tmp_path / "none/events"), "cannot write the events")


def process(*argv: str | Path, **environ: str) -> subprocess.Popen[str]:
    words: list[str | Path] = [sys.executable, "-m", "composer", *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ})


def test_traceback_with_debug_alone(places: Path, tmp_path: Path) -> None:
    for debug, shown in (([], False), (["--debug"], True)):
        with process("update", tmp_path / "none.qcow2", *debug) as done:
            _, err = done.communicate(timeout=20)
        assert done.returncode == 2
        assert ("Traceback" in err) is shown
        assert "no such disk" in err


def test_output_that_nobody_reads(places: Path) -> None:
    with process("recipe", "schema") as done:
        assert done.stdout is not None
        done.stdout.close()
        assert done.stderr is not None
        assert "Traceback" not in done.stderr.read()


def hang(fake_tool: Fake, folder: Path) -> None:
    """Have ostree write its pid and do nothing more."""
    fake_tool("ostree", f"echo $$ >{folder}/pid.new; mv {folder}/pid.new {folder}/pid; exec sleep 60")


def wait_for_pid(process: subprocess.Popen[str], folder: Path) -> None:
    while not (folder / "pid").exists():
        assert process.poll() is None
        time.sleep(0.02)


def test_under_nohup_the_end_of_the_terminal_is_nothing(
    places: Path, tmp_path: Path, tiny_repo: Path, fake_tool: Fake
) -> None:
    hang(fake_tool, tmp_path)
    with handled(signal.SIGHUP, signal.SIG_IGN), process("build", recipe(tmp_path, tiny_repo)) as build:
        wait_for_pid(build, tmp_path)
        build.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert build.poll() is None
        build.terminate()
        build.communicate(timeout=10)
    assert build.returncode == 130


@contextmanager
def handled(number: signal.Signals, how: signal.Handlers) -> Iterator[None]:
    """Have the programs that are started in the block ignore a signal, or not, whatever ours ignore."""
    former = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, former)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_build(
    places: Path, tmp_path: Path, tiny_repo: Path, fake_tool: Fake, number: signal.Signals
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    hang(fake_tool, tmp_path)
    build_it = ("build", recipe(tmp_path, tiny_repo), "-o", work / "disk.qcow2")
    with handled(number, signal.SIG_DFL), process(*build_it) as build:
        wait_for_pid(build, tmp_path)
        build.send_signal(number)
        _, err = build.communicate(timeout=10)
    assert build.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    assert list(work.iterdir()) == []
    assert list(places.iterdir()) == []
