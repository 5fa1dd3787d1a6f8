"""The helper's initramfs: archives that cpio reads, and modules in an order that loads."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest

from composer.errors import BadInput
from composer.helper.initramfs import LARGEST_MODULE, NEEDED, WELCOME, Cpio, ModuleIndex, build_initramfs
from composer.resources import bootstrap_file

APPLETS = bootstrap_file("applets").read_text().split()
BUILTIN = "".join(f"kernel/x/{name}.ko\n" for name in NEEDED)


def listed(archive: bytes) -> list[str]:
    done = subprocess.run(["cpio", "-t", "--quiet"], input=archive, check=True, capture_output=True)
    assert not done.stderr
    return done.stdout.decode().splitlines()


def unpacked(archive: bytes, folder: Path) -> Path:
    folder.mkdir()
    argv = ["cpio", "-i", "--quiet", "--no-preserve-owner"]
    subprocess.run(argv, input=archive, cwd=folder, check=True)
    return folder


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read all archives that follow one another, as the kernel does: names to mode and content."""
    found, position = {}, 0
    while position < len(archive):
        if archive[position : position + 1] == b"\0":
            position += 1
            continue
        assert archive[position : position + 6] == b"070701"
        assert position % 4 == 0
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        assert fields[2:4] == [0, 0]  # root's
        name = archive[position + 110 : position + 109 + length].decode()
        start = (position + 110 + length + 3) // 4 * 4
        if name != "TRAILER!!!":
            found[name] = (mode, archive[start : start + size])
        position = (start + size + 3) // 4 * 4
    return found


def some_archive() -> bytes:
    archive = Cpio()
    archive.folder("seed", 0o700)
    archive.file("bin/deep/busybox", b"\x7fELF\n\0", 0o755)
    archive.link("bin/sh", "deep/busybox")
    for size in range(5):  # all paddings
        archive.file(f"f{'x' * size}", b"y" * size)
    return archive.bytes()


def test_cpio_reads_it(tmp_path: Path) -> None:
    wanted = ["seed", "bin", "bin/deep", "bin/deep/busybox", "bin/sh", "f", "fx", "fxx", "fxxx", "fxxxx"]
    assert listed(some_archive()) == wanted
    root = unpacked(some_archive(), tmp_path / "root")
    assert (root / "bin/sh").read_bytes() == b"\x7fELF\n\0"
    assert (root / "bin/sh").readlink() == Path("deep/busybox")
    assert (root / "bin/deep/busybox").stat().st_mode & 0o777 == 0o755
    assert (root / "seed").stat().st_mode & 0o777 == 0o700
    assert (root / "fxxxx").read_bytes() == b"yyyy"


def test_archives_may_follow_one_another() -> None:
    second = Cpio()
    second.file("seed/key", b"secret", 0o600)
    both = some_archive() + second.bytes()
    assert entries(both)["seed/key"] == (0o100600, b"secret")
    assert entries(both)["fxxx"] == (0o100644, b"yyy")
    assert len(some_archive()) % 512 == 0


def test_bytes_may_be_taken_twice() -> None:
    archive = Cpio()
    archive.file("a", b"1")
    first = archive.bytes()
    archive.file("b", b"2")
    assert set(entries(first)) == {"a"}
    assert set(entries(archive.bytes())) == {"a", "b"}


def index(dep: str, builtin: str = "") -> ModuleIndex:
    return ModuleIndex.parse(dep, builtin)


def test_dependencies_first() -> None:
    dep = (
        "kernel/scsi/sd_mod.ko: kernel/lib/t10-pi.ko kernel/scsi/scsi_mod.ko kernel/lib/crc.ko\n"
        "kernel/scsi/virtio_scsi.ko: kernel/scsi/scsi_mod.ko kernel/virtio/virtio.ko kernel/lib/crc.ko\n"
        "kernel/scsi/scsi_mod.ko: kernel/lib/crc.ko\n"
        "kernel/lib/crc.ko:\n"
        "kernel/lib/t10-pi.ko: kernel/lib/crc.ko\n"
        "kernel/virtio/virtio.ko:\n"
        "kernel/unused.ko: kernel/virtio/virtio.ko\n"
    )
    parsed = index(dep, BUILTIN)
    order = parsed.load_order()
    assert len(order) == len(set(order))
    assert set(order) == {path for path in parsed.dependencies if path != "kernel/unused.ko"}
    for path in order:
        for needed in parsed.dependencies[path]:
            assert order.index(needed) < order.index(path)


def test_builtin_counts() -> None:
    assert index("", BUILTIN).load_order() == []


def test_dash_is_underscore() -> None:
    lines = [f"kernel/{name.replace('_', '-')}.ko.xz:\n" for name in NEEDED]
    assert len(index("".join(lines)).load_order()) == len(NEEDED)


def test_missing_modules_are_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        index("kernel/virtio_pci.ko:\n", "kernel/squashfs.ko\n").load_order()
    lacking = caught.value.message.rpartition("lacks ")[2].split(", ")
    assert lacking == [name for name in NEEDED if name not in ("virtio_pci", "squashfs")]
    assert "bootstrap.ref" in (caught.value.hint or "")


def test_welcome_modules_may_be_missing() -> None:
    dep = f"kernel/{WELCOME[0]}.ko:\n"
    assert index(dep, BUILTIN).load_order() == [f"kernel/{WELCOME[0]}.ko"]


def test_odd_lines() -> None:
    assert index("\n# comment\nno colon\n", "\n" + BUILTIN).load_order() == []


def test_whole_initramfs() -> None:
    packed = {
        "kernel/virtio_pci.ko.xz": lzma.compress(b"ELF xz"),
        "kernel/sd_mod.ko.gz": gzip.compress(b"ELF gz"),
        "kernel/squashfs.ko.zst": b"tsz FLE",
        "kernel/virtio-scsi.ko": b"ELF plain",
    }
    dep = "".join(f"{path}:\n" for path in packed)
    archive = build_initramfs(
        busybox=b"the busybox",
        init=b"the init",
        guest_init=b"the guest-init",
        sshd_config=b"# none",
        applets=["sh", "mount"],
        index=index(dep, "x/virtio_console.ko\nx/overlay.ko\n"),
        read_module=packed.__getitem__,
        unzstd=lambda content: content[::-1],
    )
    found = entries(archive)
    assert found["init"] == (0o100755, b"the init")
    assert found["guest-init"] == (0o100755, b"the guest-init")
    assert found["bin/busybox"] == (0o100755, b"the busybox")
    assert found["modules/virtio_pci.ko"][1] == b"ELF xz"
    assert found["modules/sd_mod.ko"][1] == b"ELF gz"
    assert found["modules/squashfs.ko"][1] == b"ELF zst"
    assert found["modules/virtio_scsi.ko"][1] == b"ELF plain"
    order = found["modules/order"][1].decode().split()
    assert sorted(f"modules/{name}" for name in order) == sorted(n for n in found if n.endswith(".ko"))
    assert found["bin/sh"] == found["bin/mount"] == (0o120777, b"busybox")
    assert set(listed(archive)) == set(found)


def test_busybox_has_the_applets() -> None:
    has = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    assert set(APPLETS) - set(has) == set()


def test_damaged_module() -> None:
    with pytest.raises(BadInput):
        build_initramfs(
            busybox=b"",
            init=b"",
            guest_init=b"",
            sshd_config=b"# none",
            applets=[],
            index=index("kernel/virtio_rng.ko.xz:\n", BUILTIN),
            read_module=lambda _: b"noise",
            unzstd=lambda content: content,
        )


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_a_module_that_unpacks_without_end(kind: str) -> None:
    content = bytes(LARGEST_MODULE + 1)
    packed = lzma.compress(content, preset=0) if kind == "xz" else gzip.compress(content, 1)
    assert len(packed) < 2**20
    for bomb in (packed, packed[:-10]):
        with pytest.raises(BadInput, match="cut short, or larger than any module"):
            build_initramfs(
                busybox=b"",
                init=b"",
                guest_init=b"",
                sshd_config=b"# none",
                applets=[],
                index=index(f"kernel/virtio_rng.ko.{kind}:\n", BUILTIN),
                read_module=lambda _, bomb=bomb: bomb,  # type: ignore[misc]
                unzstd=lambda content: content,
            )
