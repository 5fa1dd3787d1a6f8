"""Plans and layouts: equal recipes make equal plans, and what cannot fit is told before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer.disk.layout import Layout, room_needed
from composer.errors import BadInput
from composer.plan import Plan, make_plan
from composer.recipe.load import load_recipe
from composer.repo.commit import Listed, Tree

MIB = 2**20
KERNEL = "/usr/lib/modules/6.1"
UUID = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
BASE = 'name = "demo"\n[ostree]\nrepo = "repo"\nref = "os/good"\n'
FILE = '[[files]]\npath = "/etc/motd"\ncontent = "hello"\n'
USER = '[[users]]\nname = "me"\n'


def tree(commit: str = "a" * 64, file_bytes: int = 10 * MIB) -> Tree:
    sizes = {f"{KERNEL}/vmlinuz": 8 * MIB, f"{KERNEL}/initramfs.img": 20 * MIB, "/usr/bin/sh": file_bytes}
    return Tree(commit, {path: Listed("-", 0o644, 0, 0, size, None) for path, size in sizes.items()})


def plan_of(folder: Path, text: str, repo: str = "/repo", of: Tree | None = None) -> Plan:
    path = folder / "demo.toml"
    path.write_text(text)
    return make_plan(load_recipe(path, {}), repo, of or tree())


def test_equal_recipes_have_equal_digests(tmp_path: Path) -> None:
    spelled_otherwise = (
        f'# a comment\nname = "demo"\n{FILE}mode = "0644"\n{USER}{BASE.partition(chr(10))[2]}keep = 2\n'
    )
    assert plan_of(tmp_path, BASE + FILE + USER).digest == plan_of(tmp_path, spelled_otherwise).digest


def test_the_commit_is_not_in_the_digest(tmp_path: Path) -> None:
    first, second = (plan_of(tmp_path, BASE, of=tree(letter * 64)) for letter in "ab")
    assert first.digest == second.digest
    assert first != second


@pytest.mark.parametrize(
    "changed",
    [
        BASE.replace("demo", "other"),
        BASE.replace("os/good", "os/better"),
        BASE + 'stateroot = "other"\n',
        BASE + 'kargs = ["quiet"]\n',
        BASE + "keep = 3\n",
        BASE + '[ostree.remote]\nurl = "https://example.org/"\n',
        BASE + '[ostree.remote]\nname = "up"\nurl = "https://example.org/"\n',
        BASE + '[disk]\nsize = "8 GiB"\n',
        BASE + '[disk]\nfirmware = "uefi"\n',
        BASE + f'[disk.uuids]\nroot = "{UUID}"\n',
        BASE + '[disk.uuids]\nesp = "1A2B-3C4D"\n',
        BASE + '[system]\nhostname = "host"\n',
        BASE + USER,
        BASE + USER + "uid = 2000\n",
        BASE + USER + 'groups = ["sudo"]\n',
        BASE + USER + 'shell = "/bin/sh"\n',
        BASE + USER + 'password_hash = "$6$a$b"\n',
        BASE + USER + 'ssh_keys = ["ssh-ed25519 AAAAC3Nz"]\n',
        BASE + FILE,
        BASE + FILE.replace("hello", "bye"),
        BASE + FILE.replace("motd", "issue"),
        BASE + FILE + 'mode = "0600"\n',
        BASE + FILE + 'owner = "me"\n',
        BASE + FILE + 'group = "me"\n',
    ],
)
def test_what_shapes_the_disk_is_in_the_digest(tmp_path: Path, changed: str) -> None:
    others = {plan_of(tmp_path, text).digest for text in (BASE, BASE + USER, BASE + FILE) if text != changed}
    assert plan_of(tmp_path, changed).digest not in others


@pytest.mark.parametrize(
    "changed", ['[output]\npath = "x"\n', '[bootstrap]\nmemory = "2 GiB"\n', "[variables]\na='1'\n"]
)
def test_what_does_not_is_not(tmp_path: Path, changed: str) -> None:
    assert plan_of(tmp_path, BASE + changed).digest == plan_of(tmp_path, BASE).digest


def test_content_of_a_host_file_is_in_the_digest(tmp_path: Path) -> None:
    digests = set()
    for content in (b"one", b"two\xff"):
        (tmp_path / "motd").write_bytes(content)
        digests.add(plan_of(tmp_path, BASE + '[[files]]\npath = "/etc/motd"\nsource = "motd"\n').digest)
    assert len(digests) == 2


def test_a_repo_by_url_is_the_products_remote(tmp_path: Path) -> None:
    assert plan_of(tmp_path, BASE).remote_url is None
    by_url = plan_of(tmp_path, BASE, "https://example.org/repo")
    assert (by_url.source.remote, by_url.remote_url) == ("origin", "https://example.org/repo")
    named = plan_of(
        tmp_path, BASE + '[ostree.remote]\nname = "up"\nurl = "https://a/"\n', "https://example.org/repo"
    )
    assert (named.source.remote, named.remote_url) == ("up", "https://a/")


def test_too_small(tmp_path: Path) -> None:
    large = tree(file_bytes=1500 * MIB)
    with pytest.raises(BadInput, match=r"disk\.size is 1\.\d* ?GiB, too small|disk\.size is 1024") as caught:
        plan_of(tmp_path, BASE + '[disk]\nsize = "1 GiB"\n', of=large)
    needed = (caught.value.hint or "").split('"')[1]
    plan_of(tmp_path, f'{BASE}[disk]\nsize = "{needed}"\n', of=large)
    one_less = f"{int(needed.split()[0]) - 1} MiB"
    with pytest.raises(BadInput, match="too small"):
        plan_of(tmp_path, f'{BASE}[disk]\nsize = "{one_less}"\n', of=large)


def test_room_grows_with_all_that_takes_room() -> None:
    some = room_needed(100 * MIB, 10 * MIB, 2)
    assert some > 130 * MIB
    assert room_needed(200 * MIB, 10 * MIB, 2) > some + 100 * MIB
    assert room_needed(100 * MIB, 20 * MIB, 2) > some + 30 * MIB
    assert room_needed(100 * MIB, 10 * MIB, 3) > some + 10 * MIB


@pytest.mark.parametrize(
    ("firmware", "numbers"),
    [
        ("bios", {"bios": 1, "esp": None, "root": 2}),
        ("uefi", {"bios": None, "esp": 1, "root": 2}),
        ("bios+uefi", {"bios": 1, "esp": 2, "root": 3}),
    ],
)
def test_layouts(tmp_path: Path, firmware: str, numbers: dict[str, int | None]) -> None:
    layout = Layout.for_firmware(firmware)
    assert {role: layout.number(role) for role in numbers} == numbers
    assert plan_of(tmp_path, f'{BASE}[disk]\nfirmware = "{firmware}"\n').firmware == firmware


def test_sfdisk_script() -> None:
    assert Layout.for_firmware("bios+uefi").sfdisk_script() == (
        "label: gpt\n"
        'size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name="bios"\n'
        'size=64MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="esp", attrs="GUID:63"\n'
        'type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root"\n'
    )
