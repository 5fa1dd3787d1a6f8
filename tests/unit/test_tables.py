"""How much a qcow2 image maps: what a copy of it may take, whatever its own size."""

from __future__ import annotations

import random
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.deadline import Deadline
from composer.disk.tables import mapped_bytes
from composer.errors import BadInput, DeadlineExpired

MIB = 2**20
CLUSTER = 2**16


def image(path: Path, *writes: tuple[int, int], options: str = "cluster_size=64k", flag: str = "") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "32M"], check=True)
    commands = [word for offset, length in writes for word in ("-c", f"write {flag} {offset} {length}")]
    if commands:
        argv = ["qemu-io", "-f", "qcow2", *commands, str(path)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    ("writes", "flag", "options", "mapped"),
    [
        ([], "", "cluster_size=64k", 0),
        ([(0, 1)], "", "cluster_size=64k", CLUSTER),
        ([(0, MIB), (16 * MIB, MIB)], "", "cluster_size=64k", 2 * MIB),
        ([(0, 32 * MIB)], "", "cluster_size=64k", 32 * MIB),
        ([(0, MIB)], "-c", "cluster_size=64k", MIB),
        ([(0, MIB)], "-z -u", "cluster_size=64k", 0),
        ([(0, MIB)], "", "cluster_size=512", MIB),
        ([(0, MIB)], "", "cluster_size=64k,extended_l2=on", MIB),
    ],
)
def test_what_is_mapped(
    tmp_path: Path, deadline: Deadline, writes: list[tuple[int, int]], flag: str, options: str, mapped: int
) -> None:
    found = mapped_bytes(image(tmp_path / "a", *writes, flag=flag, options=options), deadline)
    assert mapped <= found <= mapped + CLUSTER * (mapped > 0)


def tables_of(raw: bytes | bytearray) -> tuple[int, int]:
    """Return where the L1 table lies, and the first L2 table."""
    (l1,) = struct.unpack_from(">Q", raw, 40)
    (entry,) = struct.unpack_from(">Q", raw, l1)
    return l1, entry & 0x00FF_FFFF_FFFF_FE00


def test_a_cluster_that_many_entries_name_counts_each_time(tmp_path: Path, deadline: Deadline) -> None:
    path = image(tmp_path / "a", (0, 1))
    raw = bytearray(path.read_bytes())
    _, l2 = tables_of(raw)
    entry = raw[l2 : l2 + 8]
    raw[l2 : l2 + 8 * 512] = entry * 512
    path.write_bytes(raw)
    assert path.stat().st_size < MIB
    assert mapped_bytes(path, deadline) == 32 * MIB
    flat = tmp_path / "flat"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-S", "0", path, flat], check=True)
    assert flat.stat().st_blocks * 512 > 30 * MIB, "which is what a copy takes"


def test_a_table_that_is_named_many_times_is_read_once(tmp_path: Path, deadline: Deadline) -> None:
    path = image(tmp_path / "a", (0, 32 * MIB))
    raw = bytearray(path.read_bytes())
    l1, _ = tables_of(raw)
    # A disk of 64 TiB, whose L1 table lies at the end and names the one L2 table again and again.
    struct.pack_into(">Q", raw, 24, 2**46)
    struct.pack_into(">I", raw, 36, 2**17)
    struct.pack_into(">Q", raw, 40, len(raw))
    path.write_bytes(raw + raw[l1 : l1 + 8] * 2**17)
    began = time.monotonic()
    assert mapped_bytes(path, deadline) == 32 * MIB * 2**17
    assert time.monotonic() - began < 2


def test_tables_without_end_meet_the_deadline(tmp_path: Path) -> None:
    path = image(tmp_path / "a", (0, MIB))
    with pytest.raises(DeadlineExpired):
        mapped_bytes(path, Deadline.after(0))


def test_what_is_no_image(tmp_path: Path, deadline: Deadline) -> None:
    (tmp_path / "a").write_bytes(b"QFI")
    with pytest.raises(BadInput):
        mapped_bytes(tmp_path / "a", deadline)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("t") / "a", (0, MIB), (9 * MIB, MIB))


@given(seed=st.integers(0, 2**32))
def test_any_tables_are_read_within_the_virtual_size(whole: Path, seed: int) -> None:
    chance = random.Random(seed)
    raw = bytearray(whole.read_bytes())
    l1, l2 = tables_of(raw)
    for _ in range(8):
        place = chance.choice((l1, l2, 24, 36, 40)) + 8 * chance.randrange(4)
        raw[place : place + 8] = chance.choice((chance.randbytes(8), bytes(8), b"\xff" * 8))
    path = whole.with_name("mutated")
    path.write_bytes(raw[: chance.choice((len(raw), chance.randrange(len(raw))))])
    try:
        found = mapped_bytes(path, Deadline.after(2))
    except BadInput:
        return
    assert 0 <= found <= 2**46
