"""The sh that runs in the helper, in the product and for the recipes: clean, complete, and all in use."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from composer.compose import steps
from composer.compose.supply import PULL_STEPS
from composer.disk.layout import Layout
from composer.export.choice import TRANSPORTS
from composer.plan import Plan, Source
from composer.repo.signatures import Trust
from composer.resources import bootstrap_file, recipes_folder

STEPS = bootstrap_file("guest") / "steps"
LIB = bootstrap_file("guest") / "lib.sh"
APPLETS = set(bootstrap_file("applets").read_text().split())
# fmt: off
BUILTINS = {
    ".", ":", "[", "break", "case", "cd", "command", "continue", "do", "done", "echo", "elif", "else", "esac",
    "eval", "exec", "exit", "export", "false", "fi", "for", "if", "in", "printf", "pwd", "read", "return",
    "set", "shift", "test", "then", "trap", "true", "umask", "unset", "until", "wait", "while",
}
# fmt: on


def scripts() -> list[Path]:
    """Return every file that sh reads."""
    found = []
    for folder in (bootstrap_file("."), recipes_folder()):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and (
                path.suffix == ".sh" or path.read_bytes().startswith((b"#!/bin/sh", b"#!/bin/busybox"))
            ):
                found.append(path)
    return found


def plan(firmware: str) -> Plan:
    source = Source("os/good", "1" * 64, "demo", 2, "origin")
    return Plan(
        "demo", source, None, Trust(), (), 2**32, Layout.for_firmware(firmware), "ext4", (), None, (), ()
    )


def used_steps() -> set[str]:
    built = {
        step for firmware in ("bios", "uefi", "bios+uefi") for step in steps.build_steps(plan(firmware), ())
    }
    pulls = {step for transport in TRANSPORTS for step in PULL_STEPS[transport]}
    jobs = {name: value for name, value in vars(steps).items() if name.endswith("_STEPS")}
    assert jobs
    return (
        built
        | pulls
        | set(steps.update_steps((), compact=True))
        | {step for job in jobs.values() for step in job}
    )


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    argv = ["shellcheck", "-s", "sh", "-x", "-P", str(LIB.parent), "-e", "SC1091,SC2034"]
    done = subprocess.run([*argv, path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_are_scripts() -> None:
    names = {path.name for path in scripts()}
    assert {"init", "guest-init", "dispatch", "lib.sh", "deploy.sh", "report", "make-tree"} <= names


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"]], ids=["dash", "busybox"])
def test_syntax(path: Path, shell: list[str]) -> None:
    subprocess.run([*shell, "-n", path], check=True)


def test_every_step_of_a_job_is_there() -> None:
    assert {step for step in used_steps() if not (STEPS / f"{step}.sh").is_file()} == set()


def test_every_step_is_in_a_job() -> None:
    assert {path.stem for path in STEPS.iterdir()} - used_steps() == set()


def test_order_of_a_build() -> None:
    order = steps.build_steps(plan("bios+uefi"), ("pull",))
    wanted = [
        "partition",
        "format-ext4",
        "init-sysroot",
        "pull",
        "deploy",
        "customise",
        "check",
        "report",
        "finalise",
    ]
    assert [step for step in order if step in wanted] == wanted
    assert set(order) - set(wanted) == {"format-esp", "bootloader-bios", "bootloader-uefi"}
    assert "format-esp" not in steps.build_steps(plan("bios"), ())
    assert "bootloader-bios" not in steps.build_steps(plan("uefi"), ())


def code_of(text: str) -> str:
    """Return a script without comments, words in single quotes and sums."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return re.sub(r"'[^']*'|\$\(\(.*?\)\)", "''", joined)


def commands(text: str) -> set[str]:
    """Return the words that stand where commands stand."""
    place = r"(?:^|[|;&(])\s*(?:(?:if|then|else|elif|while|until|do|!)\s+)*"
    assignment = r"(?:[A-Za-z_]\w*=[^\s\"'$(]*\s+)*"
    word = r"([a-z][\w.-]*)(?=\s|$|\)|;)"
    return set(re.findall(place + assignment + word, code_of(text), re.MULTILINE)) - BUILTINS


def functions(text: str) -> dict[str, str]:
    """Return the functions of a script, with what is in them."""
    return dict(re.findall(r"^(\w+)\(\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))


def programs(text: str, known: dict[str, str] | None = None, depth: int = 0) -> set[str]:
    """Return the programs that a step runs, itself or by the functions that it calls."""
    if known is None:
        known = functions(LIB.read_text()) | functions(text)
    found: set[str] = set()
    for word in commands(text):
        if word in known and depth < 4:
            found |= programs(known[word], known, depth + 1)
        elif word not in known:
            found.add(word)
    return found


def needs(path: Path) -> set[str]:
    return {
        word
        for line in re.findall(r"^# needs: (.*)$", path.read_text(), re.MULTILINE)
        for word in line.split()
    }


ALL_STEPS = [pytest.param(path, id=path.stem) for path in sorted(STEPS.iterdir())]


@pytest.mark.parametrize("path", ALL_STEPS)
def test_needed_programs_are_told(path: Path) -> None:
    assert programs(path.read_text()) - APPLETS - needs(path) == set()


@pytest.mark.parametrize("path", ALL_STEPS)
def test_told_programs_are_needed(path: Path) -> None:
    assert needs(path) - programs(path.read_text()) == set()


def test_the_reading_of_scripts_finds_programs() -> None:
    """Without this the two tests above could pass for reading nothing."""
    assert commands("a | b && c; $(d x) || e\nif f; then g; fi\nx=1 h y\n# i\n'j'") == set("abcdefgh")
    assert "ostree" in programs((STEPS / "deploy.sh").read_text())
    assert "blkid" in programs((STEPS / "deploy.sh").read_text())
