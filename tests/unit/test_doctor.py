"""`composer doctor`: what it says of programs that do not work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from composer.compose.doctor import Finding, examine
from composer.store.folders import Folders

FakeTool = Callable[[str, str], Path]


def programs(folder: Path) -> dict[str, Finding]:
    """Return what is found of each program."""
    found = examine(Folders(folder, folder), "test:///default")
    return {finding.need: finding for finding in takewhile(lambda finding: finding.need != "libvirt", found)}


@pytest.mark.parametrize("tool", ["ostree", "qemu-img", "sqfstar", "busybox"])
def test_a_program_that_jobs_need(tmp_path: Path, fake_tool: FakeTool, tool: str) -> None:
    fake_tool(tool, "exit 9")
    assert programs(tmp_path)[tool].state == "bad"


@pytest.mark.parametrize("tool", ["mke2fs", "zstd"])
def test_a_program_that_jobs_can_do_without(tmp_path: Path, fake_tool: FakeTool, tool: str) -> None:
    assert programs(tmp_path)[tool].state == "good"
    fake_tool(tool, "exit 9")
    assert programs(tmp_path)[tool].state == "weak"
