"""Disks that are handed over to a QEMU which may not open files: what its monitor is told."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from composer.deadline import Deadline
from composer.errors import DeadlineExpired
from composer.helper import handed
from composer.helper.domain import Backing, Disk


class FakeMonitor:
    """QEMU's monitor: knows sets of descriptors, nodes and devices, and refuses what does not fit."""

    def __init__(self) -> None:
        self.sets: dict[int, list[tuple[str, int]]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, str] = {}
        self.stuck = False

    def __call__(self, command: str, arguments: dict[str, Any], descriptors: Sequence[int]) -> Any:
        return getattr(self, command.replace("-", "_"))(arguments, descriptors)

    def add_fd(self, arguments: dict[str, Any], descriptors: Sequence[int]) -> None:
        (descriptor,) = descriptors
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        found = Path(f"/proc/self/fd/{descriptor}").readlink().name
        self.sets.setdefault(arguments["fdset-id"], []).append((found, mode))

    def blockdev_add(self, arguments: dict[str, Any], _: Sequence[int]) -> None:
        if arguments["driver"] == "file":
            assert int(arguments["filename"].removeprefix("/dev/fdset/")) in self.sets
        else:
            assert {arguments["file"], arguments.get("backing") or arguments["file"]} <= self.nodes.keys()
        self.nodes[arguments["node-name"]] = arguments

    def device_add(self, arguments: dict[str, Any], _: Sequence[int]) -> None:
        assert arguments["drive"] in self.nodes
        self.devices[arguments["id"]] = arguments["drive"]

    def device_del(self, arguments: dict[str, Any], _: Sequence[int]) -> None:
        if not self.stuck:
            del self.devices[arguments["id"]]

    def query_block(self, _arguments: dict[str, Any], _: Sequence[int]) -> list[dict[str, Any]]:
        return [{"qdev": name} for name in self.devices]

    def blockdev_del(self, arguments: dict[str, Any], _: Sequence[int]) -> None:
        name = arguments["node-name"]
        assert name not in self.devices.values()
        assert not any(name in (node.get("file"), node.get("backing")) for node in self.nodes.values())
        del self.nodes[name]

    def remove_fd(self, arguments: dict[str, Any], _: Sequence[int]) -> None:
        number = arguments["fdset-id"]
        assert not any(node.get("filename") == f"/dev/fdset/{number}" for node in self.nodes.values())
        del self.sets[number]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    for name in ("overlay", "disk", "base", "delta"):
        (tmp_path / name).touch()
    below = Backing(tmp_path / "disk", "qcow2", Backing(tmp_path / "base", "qcow2"))
    return Disk(tmp_path / "overlay", "qcow2", "composer-target", "sdb", backing=below)


def test_a_disk_comes_and_goes_with_all_that_is_below_it(disk: Disk) -> None:
    monitor = FakeMonitor()
    before = len(list(Path("/proc/self/fd").iterdir()))
    delta = Disk(disk.path.with_name("delta"), "raw", "composer-delta", "sdc", readonly=True)
    handed.attach(monitor, disk)
    handed.attach(monitor, delta)
    read, both = [("overlay", os.O_RDONLY), ("overlay", os.O_RDWR)], sorted(monitor.sets.values())
    assert both == sorted([read, [("disk", os.O_RDONLY)], [("base", os.O_RDONLY)], [("delta", os.O_RDONLY)]])
    top = monitor.nodes["composer-sdb"]
    assert not top["read-only"]
    assert monitor.nodes[top["backing"]]["read-only"]
    bottom = monitor.nodes[monitor.nodes[top["backing"]]["backing"]]
    assert bottom["backing"] is None, "no name in a header is followed"
    assert "backing" not in monitor.nodes["composer-sdc"], "a raw file has none"
    for each in (delta, disk):
        handed.detach(monitor, each, Deadline.after(5))
    assert (monitor.sets, monitor.nodes, monitor.devices) == ({}, {}, {})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_guest_that_does_not_let_go_meets_the_deadline(disk: Disk) -> None:
    monitor = FakeMonitor()
    handed.attach(monitor, disk)
    monitor.stuck = True
    with pytest.raises(DeadlineExpired, match="overlay to be released"):
        handed.detach(monitor, disk, Deadline.after(0.2))
