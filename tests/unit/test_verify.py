"""Verify's judgement of a boot, and how it reads the report of a guest that may lie."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.compose import verify
from composer.compose.verify import Boot, firmwares
from composer.errors import BadInput

COMMIT, OTHER = "1" * 64, "2" * 64
GOOD = Boot("bios", COMMIT, "running", "multi-user.target active", (), (), 12.5)
REPORT = f"""\
composer-verify begin
composer-verify state running
composer-verify deployment /sysroot/ostree/deploy/debian/deploy/{COMMIT}.0
composer-verify booted yes
composer-verify firmware bios
composer-verify target multi-user.target active
composer-verify uptime 12.50
composer-verify end
"""


def read(folder: Path, text: str | bytes) -> Boot:
    path = folder / "report"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return verify._read_boot(path)


def test_good_boot(tmp_path: Path) -> None:
    boot = read(tmp_path, REPORT)
    assert boot == GOOD
    assert boot.faults(COMMIT, "bios") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"commit": OTHER}, f"it booted {OTHER[:12]}, not {COMMIT[:12]}"),
        ({"commit": ""}, "no deployment"),
        ({"firmware": "uefi"}, "under uefi, not bios"),
        ({"firmware": ""}, "unknown firmware"),
        ({"target": "multi-user.target inactive"}, "not reached (multi-user.target inactive)"),
        ({"target": "multi-user.target activating"}, "not reached"),
        ({"target": ""}, "not reached (none)"),
        ({"state": "degraded", "failed": ("a.service", "b.mount")}, "failed units: a.service, b.mount"),
        ({"failed": ("a.service",)}, "failed units: a.service"),
        ({"state": "starting", "waiting": ("c.service",)}, "still waiting: c.service"),
        ({"state": "maintenance"}, "calls the system maintenance"),
        ({"state": "stopping"}, "stopping"),
        ({"state": ""}, "nothing"),
    ],
)
def test_bad_boot(changes: dict[str, Any], told: str) -> None:
    assert told in "; ".join(dataclasses.replace(GOOD, **changes).faults(COMMIT, "bios"))


def test_all_that_is_wrong_is_told() -> None:
    assert len(Boot("", "", "", "", ("a",), ("b",), 0).faults(COMMIT, "uefi")) == 6


def test_firmwares() -> None:
    assert firmwares("auto", "bios+uefi") == ["bios"]
    assert firmwares("all", "bios+uefi") == ["bios", "uefi"]
    assert firmwares("uefi", "bios+uefi") == ["uefi"]
    assert firmwares("auto", "uefi") == firmwares("all", "uefi") == ["uefi"]
    with pytest.raises(BadInput, match="under uefi, not under bios"):
        firmwares("bios", "uefi")


def test_a_boot_that_is_not_of_ostree_has_no_commit(tmp_path: Path) -> None:
    assert read(tmp_path, REPORT.replace("composer-verify booted yes\n", "")).commit == ""


def test_the_first_word_counts(tmp_path: Path) -> None:
    """A product that writes to the port later changes nothing."""
    assert read(tmp_path, f"{REPORT}composer-verify state degraded\n").state == "running"


def test_several_failed_units(tmp_path: Path) -> None:
    boot = read(tmp_path, REPORT + "composer-verify failed a.service\ncomposer-verify failed b.service\n")
    assert boot.failed == ("a.service", "b.service")
    assert boot.faults(COMMIT, "bios") == ["failed units: a.service, b.service"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\0" * 100,
        b"composer-verify\n",
        b"composer-verify \n",
        b"composer-verify uptime 1.2.3\ncomposer-verify end\n",
        b"composer-verify uptime nan\n",
        b"composer-verify uptime -5\n",
        b"composer-verify deployment \0/../..\ncomposer-verify booted yes\n",
        REPORT.replace("\n", "\r\n").encode().replace(b"state running", b"state evil\x1b[2J"),
    ],
)
def test_hostile_report(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text).faults(COMMIT, "bios")


def test_serial_line_ends(tmp_path: Path) -> None:
    """A serial port's terminal turns each newline into two characters."""
    assert read(tmp_path, REPORT.replace("\n", "\r\n")) == GOOD


def test_a_number_that_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "composer-verify uptime ²\n").uptime == 0


def test_an_endless_report_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_bytes(REPORT.encode() + b"composer-verify failed x\n" * 2**17)
    began = time.monotonic()
    boot = verify._read_boot(path)
    assert boot.state == "running"
    assert len(boot.failed) < 2**16
    assert time.monotonic() - began < 2


LINES = st.lists(st.sampled_from(REPORT.encode().splitlines()) | st.binary(max_size=30), max_size=12)


@given(lines=LINES)
def test_any_report_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    boot = read(tmp_path_factory.getbasetemp(), b"\n".join(lines))
    boot.faults(COMMIT, "bios")
