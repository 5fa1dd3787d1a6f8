"""The gate for disks from outside: no header makes it open another file, hang or fall over."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer.disk.qcow2 import Header, check_disk, hidden_beside, overlays_on
from composer.errors import BadInput
from tests.unit.unprivileged import as_nobody

# docs/interop/qcow2.txt: version 3, from the magic to the header's length.
FIELDS = {
    "magic": "4s", "version": "I", "backing_offset": "Q", "backing_length": "I", "cluster_bits": "I",
    "size": "Q", "crypt": "I", "l1_size": "I", "l1_offset": "Q", "table_offset": "Q", "table_clusters": "I",
    "snapshots": "I", "snapshots_offset": "Q", "incompatible": "Q", "compatible": "Q", "autoclear": "Q",
    "refcount_order": "I", "length": "I",
}  # fmt: skip
GOOD: dict[str, int | bytes] = {
    "magic": b"QFI\xfb", "version": 3, "cluster_bits": 16, "size": 2**23, "l1_size": 1, "l1_offset": 0x30000,
    "table_offset": 0x10000, "table_clusters": 1, "refcount_order": 4, "length": 104,
}  # fmt: skip


def header(extensions: bytes = b"", backing: bytes = b"", **changed: Any) -> bytes:
    """Return a header with the fields given; the backing file's name is put at 0x200."""
    if backing:
        changed = {"backing_offset": 0x200, "backing_length": len(backing), **changed}
    values = {**GOOD, **changed}
    form = ">" + "".join(FIELDS.values())
    raw = struct.pack(form, *(values.get(field, 0) for field in FIELDS)) + extensions
    return raw.ljust(0x200, b"\0") + backing.ljust(2**16 - 0x200, b"\0")


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


FORMAT_QCOW2 = extension(0xE2792ACA, b"qcow2")


def written(folder: Path, raw: bytes, name: str = "disk.qcow2") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def test_persistent_bitmaps_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    assert check_disk(path).bitmaps == 0
    for name in ("one", "two"):
        subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", path, name], check=True)
    assert check_disk(path).bitmaps == 2


@pytest.mark.parametrize(
    "name",
    [
        "disk.qcow2",
        "file:disk.qcow2",
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}',
        'json:{"file.filename":"d\\u0069sk.qcow2"}',
        'json:{"file.filename":"./\\/disk.qcow2"}'.replace("./\\/", "./"),
        'json:{"driver":"qcow2","file":"json:{\\"filename\\":\\"disk.qcow2\\"}"}',
        "json:{'file.filename':\"disk.qcow2\"}".replace("'", '"'),
        'json:{"file":{"filename":"disk.qcow2"},}',
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_an_overlay_is_known_by_whatever_name_it_gives_its_base(
    tmp_path: Path, name: str, linked: bool
) -> None:
    """Also where the folder has a link to an overlay that lies elsewhere."""
    disk = written(tmp_path, header())
    (tmp_path / "else").mkdir()
    overlay = tmp_path / ("else/over.qcow2" if linked else "over.qcow2")
    overlay.write_bytes(header(FORMAT_QCOW2, name.encode()))
    if linked:
        (tmp_path / "over.qcow2").symlink_to("else/over.qcow2")
    assert overlays_on(disk) == [tmp_path / "over.qcow2"]


def refused(path: Path, why: str = r"\w") -> BadInput:
    began = time.monotonic()
    with pytest.raises(BadInput, match=why) as caught:
        check_disk(path)
    assert time.monotonic() - began < 0.5
    return caught.value


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.DEVNULL)


def test_new_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "5G")
    found = check_disk(disk)
    assert found == Header(3, 5 * 2**30, 16, None, None, dirty=False, l1_size=10, l1_offset=found.l1_offset)


@pytest.mark.parametrize(
    "options", ["compat=0.10", "extended_l2=on,cluster_size=128k", "compression_type=zstd",
                "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on"],
)  # fmt: skip
def test_kinds_of_qcow2(tmp_path: Path, options: str) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", options, disk, "8M")
    assert check_disk(disk).size == 2**23


def test_overlay(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", base, "8M")
    for name in (base, Path("base.qcow2")):
        qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", name, overlay)
        assert check_disk(overlay).backing == str(name)
        assert check_disk(overlay).backing_format == "qcow2"


def test_overlay_by_a_linked_folder(tmp_path: Path) -> None:
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.symlink_to(real)
    qemu_img("create", "-f", "qcow2", real / "base.qcow2", "8M")
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", linked / "base.qcow2", real / "overlay.qcow2")
    check_disk(linked / "overlay.qcow2")


def test_base_is_checked_too(tmp_path: Path) -> None:
    written(tmp_path, b"raw", "base.qcow2")
    refused(written(tmp_path, header(FORMAT_QCOW2, b"base.qcow2")), "base.qcow2 is no qcow2")
    written(tmp_path, header(FORMAT_QCOW2, b"/etc/passwd"), "base.qcow2")
    refused(written(tmp_path, header(FORMAT_QCOW2, b"base.qcow2")), "outside its own folder")


def test_encrypted(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
             "encrypt.format=aes,encrypt.key-secret=s", disk, "8M")  # fmt: skip
    refused(disk, "encrypted")


def test_external_data(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", disk, "8M")
    refused(disk, "data in another file")
    refused(written(tmp_path, header(extension(0x44415441, b"/etc/passwd"))), "external data file")


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown feature": ({"incompatible": 1 << 5}, "features unknown here"),
    "last feature": ({"incompatible": 1 << 63}, "features unknown here"),
    "corrupt": ({"incompatible": 2}, "corrupt"),
    "version 1": ({"version": 1}, "version 1"),
    "version 4": ({"version": 4}, "version 4"),
    "exbibytes": ({"size": 2**60}, "absurd"),
    "all ones": ({"size": 2**64 - 1}, "absurd"),
    "endless L1": ({"l1_size": 2**32 - 1}, "absurd"),
    "endless refcounts": ({"table_clusters": 2**32 - 1}, "absurd"),
    "tiny clusters": ({"cluster_bits": 8}, "clusters"),
    "huge clusters": ({"cluster_bits": 2**32 - 1}, "clusters"),
    "long header": ({"length": 2**32 - 1}, "header length"),
    "short header": ({"length": 8}, "header length"),
    "long backing name": ({"backing_offset": 0x200, "backing_length": 1024}, "where none can"),
    "far backing name": ({"backing_offset": 2**63, "backing_length": 8}, "where none can"),
    "backing name of no bytes": ({"backing_offset": 0x200, "backing_length": 0}, "where none can"),
    "backing name before the extensions": ({"backing_offset": 3, "backing_length": 4}, "where none can"),
    "LUKS": ({"crypt": 2}, "encrypted"),
    "no magic": ({"magic": b"QFI\xfa"}, "no qcow2"),
}


@pytest.mark.parametrize(("changed", "why"), CLAIMS.values(), ids=CLAIMS.keys())
def test_claim(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    refused(written(tmp_path, header(**changed)), why)


def test_handmade_header_is_good(tmp_path: Path) -> None:
    """Without this the refusals above could be for another reason."""
    assert check_disk(written(tmp_path, header())).size == 2**23
    assert check_disk(written(tmp_path, header(incompatible=1))).dirty


def test_extension_runs_out(tmp_path: Path) -> None:
    refused(written(tmp_path, header(struct.pack(">II", 0x6803F857, 2**32 - 1))), "extension")


@pytest.mark.parametrize(
    "name",
    [
        b"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", b"nbd://127.0.0.1/x", b"nbd:unix:/run/x",
        b"http://example.org/x", b"ssh://root@example.org/x", b"fat:rw:/etc", b"file:base.qcow2",
        b"/etc/passwd",
        b"../base.qcow2", b"sub/base.qcow2", b"./../../etc/passwd", b"link", b"linked/base.qcow2", b"a\0b",
        b"/",
        b"..", b".", b"/dev/zero", b"\xff\xfe",
    ],
)  # fmt: skip
def test_backing_name(tmp_path: Path, name: bytes) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    (home / "sub").mkdir(parents=True)
    for folder in (outside, tmp_path, home / "sub"):
        written(folder, header(), "base.qcow2")
    (home / "link").symlink_to(outside / "base.qcow2")
    (home / "linked").symlink_to(outside)
    refused(written(home, header(FORMAT_QCOW2, name)))


@pytest.mark.parametrize("name", ["nbd:x", "file:base.qcow2", "host_device:", "json:{}"])
def test_protocol_that_is_a_file_too(tmp_path: Path, name: str) -> None:
    """QEMU would not open this file but what the protocol stands for."""
    written(tmp_path, header(), name)
    refused(written(tmp_path, header(FORMAT_QCOW2, name.encode())), "no plain path")


@pytest.mark.parametrize("form", [b"", extension(0xE2792ACA, b"raw"), extension(0xE2792ACA, b"\xff")])
def test_backing_format(tmp_path: Path, form: bytes) -> None:
    written(tmp_path, header(), "base.qcow2")
    assert refused(written(tmp_path, header(form, b"base.qcow2")), "format").hint


def test_circles(tmp_path: Path) -> None:
    refused(written(tmp_path, header(FORMAT_QCOW2, b"disk.qcow2")), "its own backing file")
    written(tmp_path, header(FORMAT_QCOW2, b"disk.qcow2"), "other.qcow2")
    refused(written(tmp_path, header(FORMAT_QCOW2, b"other.qcow2")), "its own backing file")


def test_deep_chain(tmp_path: Path) -> None:
    written(tmp_path, header(), "0")
    for number in range(1, 12):
        written(tmp_path, header(FORMAT_QCOW2, b"%d" % (number - 1)), str(number))
    check_disk(tmp_path / "8")
    refused(tmp_path / "9", "more than 8")


@pytest.mark.parametrize(
    "name", [b"disk.qcow2", b"./disk.qcow2", b"file:disk.qcow2", b'json:{"driver":"qcow2","file":'
             b'{"driver":"file","filename":"disk.qcow2"}}', b'json:{"file.filename": "disk.qcow2"}'],
)  # fmt: skip
def test_overlays_are_found_whatever_they_call_their_base(tmp_path: Path, name: bytes) -> None:
    """Without a format too, as QEMU before 6.1 allowed, and where the gate would refuse them."""
    disk = written(tmp_path, header())
    written(tmp_path, header(backing=b"other.qcow2"), "unrelated.qcow2")
    written(tmp_path, header(backing=b"\0"), "odd.qcow2")
    overlay = written(tmp_path, header(backing=name, crypt=1, incompatible=2), "overlay.qcow2")
    assert overlays_on(disk) == [overlay]


def test_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    refused(written(tmp_path, header(FORMAT_QCOW2, b"link")))


def test_what_is_no_disk(tmp_path: Path) -> None:
    assert refused(tmp_path / "none", "no such disk").hint
    refused(tmp_path, "no regular file")
    refused(written(tmp_path, b""), "no qcow2")
    assert "qemu-img convert -f raw" in (
        refused(written(tmp_path, b"\xeb\x63\x90" * 999), "no qcow2").hint or ""
    )
    refused(Path("/dev/zero"), "no regular file")


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    # Who waits for the FIFO's other end is let go, and found to have waited.
    letting_go = Timer(1, lambda: os.close(os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)))
    letting_go.start()
    try:
        refused(tmp_path / "fifo", "no regular file")
    finally:
        letting_go.cancel()


@pytest.mark.parametrize("length", [3, 4, 71, 72, 80, 103])
def test_cut_off(tmp_path: Path, length: int) -> None:
    refused(written(tmp_path, header()[:length]))


def test_sparse_giant_is_quick(tmp_path: Path) -> None:
    disk = written(tmp_path, header())
    os.truncate(disk, 2**42)
    began = time.monotonic()
    check_disk(disk)
    assert time.monotonic() - began < 0.5


EDITS = st.lists(st.tuples(st.integers(0, 0x240), st.binary(min_size=1, max_size=8)), max_size=6)


@given(edits=EDITS, length=st.integers(0, 2**16), v2=st.booleans(), backed=st.booleans())
def test_any_header_is_read_or_refused(
    edits: list[tuple[int, bytes]], length: int, v2: bool, backed: bool
) -> None:
    raw = bytearray(header(FORMAT_QCOW2, b"base.qcow2" if backed else b"", version=2 if v2 else 3))
    for position, content in edits:
        raw[position : position + len(content)] = content
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, header(), "base.qcow2")
        try:
            said = check_disk(written(folder, bytes(raw[:length])))
        except BadInput:
            return
        assert said.size <= 2**46
        if said.backing:
            assert (folder / said.backing).resolve().parent == folder.resolve()


@given(raw=st.binary(max_size=300).map(lambda tail: b"QFI\xfb" + tail))
def test_noise_is_read_or_refused(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as name, suppress(BadInput):
        check_disk(written(Path(name), raw))


def test_what_cannot_be_read_beside_a_disk_is_known(tmp_path: Path) -> None:
    written(tmp_path, header())
    written(tmp_path, header(backing=b"disk.qcow2"), "secret.qcow2").chmod(0o000)
    tmp_path.chmod(0o755)

    def look() -> None:
        assert hidden_beside(Path("disk.qcow2")) == [Path("secret.qcow2")]

    as_nobody(tmp_path, look)
