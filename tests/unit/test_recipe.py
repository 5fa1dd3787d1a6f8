"""Recipes: what is taken, and what is refused with all its faults at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composer.errors import BadInput, RecipeErrors
from composer.recipe.hostfiles import host_path
from composer.recipe.load import load_recipe
from composer.recipe.model import Recipe
from composer.resources import recipes_folder

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGw7 me@example.org"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"
BASE = 'name = "demo"\n[ostree]\nrepo = "repo"\nref = "os/good"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "demo.toml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str) -> dict[str, str]:
    path = write(folder, text)
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(path, {})
    for fault in caught.value.faults:
        assert f"{path}: {fault}" in caught.value.message
    return {fault.key: fault.reason for fault in caught.value.faults}


def test_shipped_recipe_is_good() -> None:
    loaded = load_recipe(recipes_folder() / "debian-bookworm.toml", {})
    assert loaded.recipe.ostree.ref == "debian/bookworm/amd64/demo"
    assert b"{{" not in loaded.contents["/etc/motd"]


def test_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, BASE), {}).recipe
    assert recipe.disk.size == 4 * 2**30
    assert recipe.disk.firmware == "bios+uefi"
    assert recipe.ostree.keep == 2
    assert recipe.users == ()


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "motd").write_bytes(b"hello\xff\n")
    (tmp_path / "me.pub").write_text(f"# mine\n{PUBLIC_KEY}\n\n")
    loaded = load_recipe(
        write(
            tmp_path,
            BASE
            + '[output]\npath = "../out/disk.qcow2"\n[[files]]\npath = "/etc/motd"\nsource = "motd"\n'
            + f'[[users]]\nname = "me"\nssh_keys = ["{PUBLIC_KEY} second"]\nssh_key_files = ["me.pub"]\n',
        ),
        {},
    )
    assert loaded.contents == {"/etc/motd": b"hello\xff\n"}
    assert loaded.ssh_keys == {"me": (f"{PUBLIC_KEY} second", PUBLIC_KEY)}
    assert loaded.output == tmp_path.parent / "out/disk.qcow2"


def test_the_disk_is_named_after_the_recipe(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, BASE), {}).output == tmp_path / "demo.qcow2"


@pytest.mark.parametrize(
    ("written", "size"),
    [('"512 MiB"', 2**29), ('"512MiB"', 2**29), ('"1 TiB"', 2**40), ("536870912", 2**29)],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    assert load_recipe(write(tmp_path, f"{BASE}[disk]\nsize = {written}\n"), {}).recipe.disk.size == size


def test_all_faults_at_once(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        'name = "two words"\nsurprise = 1\n[ostree]\nref = "os/good"\nkeep = "2"\nkargs = ["quiet", "a;b"]\n'
        '[disk]\nsize = "4 GB"\nfilesystem = "zfs"\n[[users]]\nname = "Me"\nuid = true\n[system]\nhost = 1\n'
        '[[files]]\npath = "/usr/bin/sh"\ncontent = "{{ nope }}"\nmode = "999"\n',
    )
    assert set(faults) == {
        "name", "surprise", "ostree.repo", "ostree.keep", "ostree.kargs[1]", "disk.size", "disk.filesystem",
        "users[0].name", "users[0].uid", "system.host", "files[0].path", "files[0].content", "files[0].mode",
    }  # fmt: skip
    assert faults["surprise"] == "unknown key"
    assert faults["ostree.repo"] == "this key is needed"
    assert "'4 GB' is no size" in faults["disk.size"]


WRONG = {
    "number as text": ('[bootstrap]\ncpus = "4"\n', "bootstrap.cpus"),
    "text as number": ("[system]\nhostname = 4\n", "system.hostname"),
    "yes as number": ("[bootstrap]\ncpus = true\n", "bootstrap.cpus"),
    "table as list": ('[users]\nname = "me"\n', "users"),
    "list as text": ('[output]\npath = ["a"]\n', "output.path"),
    "too small": ('[disk]\nsize = "1 MiB"\n', "disk"),
    "too large": ('[disk]\nsize = "100000 TiB"\n', "disk"),
    "size below zero": ("[disk]\nsize = -1\n", "disk.size"),
    "size as fraction": ("[disk]\nsize = 4.5\n", "disk.size"),
    "UUID in capitals": ('[disk.uuids]\nroot = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"\n', "disk.uuids.root"),
    "UUID of zeros": ('[disk.uuids]\nroot = "00000000-0000-0000-0000-000000000000"\n', "disk.uuids.root"),
    "option as UUID": ('[disk.uuids]\nroot = "-U random"\n', "disk.uuids.root"),
    "FAT id too long": ('[disk.uuids]\nesp = "1A2B-3C4D5"\n', "disk.uuids.esp"),
    "ESP on a BIOS disk": ('[disk]\nfirmware = "bios"\nuuids.esp = "1A2B-3C4D"\n', "disk"),
    "path in /usr": ('[[files]]\npath = "/usr/x"\ncontent = ""\n', "files[0].path"),
    "path out of /etc": ('[[files]]\npath = "/etc/../usr/x"\ncontent = ""\n', "files[0].path"),
    "relative path": ('[[files]]\npath = "etc/x"\ncontent = ""\n', "files[0].path"),
    "path with newline": ('[[files]]\npath = "/etc/a\\nb"\ncontent = ""\n', "files[0].path"),
    "folder as path": ('[[files]]\npath = "/etc/"\ncontent = ""\n', "files[0].path"),
    "content and source": ('[[files]]\npath = "/etc/x"\ncontent = ""\nsource = "x"\n', "files[0]"),
    "neither": ('[[files]]\npath = "/etc/x"\n', "files[0]"),
    "missing source": ('[[files]]\npath = "/etc/x"\nsource = "none"\n', "files[0].source"),
    "folder as source": ('[[files]]\npath = "/etc/x"\nsource = "."\n', "files[0].source"),
    "NUL in source": ('[[files]]\npath = "/etc/x"\nsource = "a\\u0000b"\n', "files[0].source"),
    "NUL in content": ('[[files]]\npath = "/etc/x"\ncontent = "a\\u0000b"\n', "files[0].content"),
    "no key": ('[[users]]\nname = "me"\nssh_keys = ["hello"]\n', "users[0].ssh_keys[0]"),
    "two keys in one": (
        f'[[users]]\nname = "me"\nssh_keys = ["{PUBLIC_KEY}\\n{PUBLIC_KEY}"]\n',
        "users[0].ssh_keys[0]",
    ),
    "missing key file": ('[[users]]\nname = "me"\nssh_key_files = ["x.pub"]\n', "users[0].ssh_key_files[0]"),
    "shell of root": ('[[users]]\nname = "root"\nshell = "/bin/sh"\n', "users[0]"),
    "uid of root": ('[[users]]\nname = "root"\nuid = 1000\n', "users[0]"),
    "system uid": ('[[users]]\nname = "me"\nuid = 0\n', "users[0].uid"),
    "hash with colon": ('[[users]]\nname = "me"\npassword_hash = "$6$a:b$c"\n', "users[0].password_hash"),
    "plain password": ('[[users]]\nname = "me"\npassword_hash = "secret"\n', "users[0].password_hash"),
    "remote name as option": ('[ostree.remote]\nname = "-x"\nurl = "https://a/"\n', "ostree.remote.name"),
    "remote URL with space": ('[ostree.remote]\nurl = "https://a/ b"\n', "ostree.remote.url"),
    "remote by ssh": ('[ostree.remote]\nurl = "ssh://a/b"\n', "ostree.remote.url"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "key"), WRONG.values(), ids=WRONG.keys())
def test_wrong_value(tmp_path: Path, text: str, key: str) -> None:
    assert list(faults_of(tmp_path, BASE + text)) == [key]


@pytest.mark.parametrize("url", ["https://me:secret@example.org/r", "http://secret@example.org"])
def test_a_password_in_a_url_is_refused_and_not_told(tmp_path: Path, url: str) -> None:
    faults = faults_of(tmp_path, BASE.replace('"repo"', f'"{url}"'))
    assert "netrc" in faults["ostree.repo"]
    assert "secret" not in faults["ostree.repo"]


@pytest.mark.parametrize("character", [*"'\"$`\\;|&<>(){}*?#! \n\t", "\x7f", "ä"])
def test_karg_that_a_bootloader_would_read(tmp_path: Path, character: str) -> None:
    text = BASE + f"kargs = [{json.dumps(f'a{character}b')}]\n"
    assert list(faults_of(tmp_path, text)) == ["ostree.kargs[0]"]


@pytest.mark.parametrize(
    "text", ['kargs = ["quiet\\n"]\n', '[[files]]\npath = "/etc/x"\ncontent = ""\nmode = "0644\\n"\n']
)
def test_newline_at_the_end(tmp_path: Path, text: str) -> None:
    faults_of(tmp_path, BASE + text)


@pytest.mark.parametrize("karg", ["root=UUID=1-2", "console=ttyS0,115200", "a.b=[1,2]", "x=~a^b%+@:/"])
def test_usual_kargs(tmp_path: Path, karg: str) -> None:
    assert load_recipe(write(tmp_path, f'{BASE}kargs = ["{karg}"]\n'), {}).recipe.ostree.kargs == (karg,)


def test_given_twice(tmp_path: Path) -> None:
    user, file = '[[users]]\nname = "me"\n', '[[files]]\npath = "/etc/x"\ncontent = "1"\n'
    assert "me" in faults_of(tmp_path, BASE + user + user)[""]
    assert "/etc/x" in faults_of(tmp_path, BASE + file + file)[""]


def test_given_twice_both(tmp_path: Path) -> None:
    user, file = '[[users]]\nname = "me"\n', '[[files]]\npath = "/etc/x"\ncontent = "1"\n'
    assert "/etc/x" in str(faults_of(tmp_path, BASE + user + user + file + file))


def test_private_key(tmp_path: Path) -> None:
    (tmp_path / "id").write_text(PRIVATE_KEY)
    by_file = faults_of(tmp_path, BASE + '[[users]]\nname = "me"\nssh_key_files = ["id"]\n')
    assert "private key" in by_file["users[0].ssh_key_files[0]"]
    inline = faults_of(tmp_path, f"{BASE}[[users]]\nname = 'me'\nssh_keys = [{json.dumps(PRIVATE_KEY)}]\n")
    assert "private key" in inline["users[0].ssh_keys[0]"]


def test_missing_host_files_are_told_together(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        BASE
        + '[[users]]\nname = "me"\nssh_key_files = ["a.pub"]\n[[files]]\npath = "/etc/x"\nsource = "b"\n',
    )
    assert set(faults) == {"users[0].ssh_key_files[0]", "files[0].source"}


@pytest.mark.parametrize(
    "text",
    ['[[files]]\npath = "/etc/x"\nsource = "~nobody-here/x"\n', '[output]\npath = "~nobody-here/disk"\n'],
)
def test_home_of_nobody(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput):
        _ = load_recipe(write(tmp_path, BASE + text), {}).output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match="no such file") as caught:
        load_recipe(write(tmp_path, BASE + '[[files]]\npath = "/etc/x"\nsource = "none"\n'), {})
    assert caught.value.hint == "files that a recipe names are relative to it"


@pytest.mark.parametrize("raw", [b"name = \n", b'name = "\xff"\n', b"x = " + b"{" * 5000, b"a = 1\na = 2\n"])
def test_no_toml(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "demo.toml"
    path.write_bytes(raw)
    with pytest.raises(RecipeErrors, match="no valid TOML"):
        load_recipe(path, {})


def test_endless_number(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors):
        load_recipe(write(tmp_path, BASE + f"keep = {'9' * 5000}\n"), {})


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file") as caught:
        load_recipe(tmp_path / "none.toml", {})
    assert caught.value.hint


def test_endless_recipe(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    with path.open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(BadInput, match="larger"):
        load_recipe(path, {})


def tables(model: Any) -> Iterator[Any]:
    """Yield the model and all tables in it."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                yield from tables(kind)


def test_schema_has_every_key_and_no_more() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    found = {model.__name__: model for model in tables(Recipe)}
    assert set(schema["$defs"]) == set(found) - {"Recipe"}
    for name, model in found.items():
        table = schema if name == "Recipe" else schema["$defs"][name]
        assert table["additionalProperties"] is False
        assert set(table["properties"]) == set(model.model_fields)


@pytest.mark.parametrize(
    "bomb", ["[" + "a." * 5000 + "b]", "a" + ".a" * 300 + " = 1", "x = " + "[" * 40 + "]" * 40]
)
def test_tables_without_end(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.toml"
    path.write_text(bomb)
    with pytest.raises(RecipeErrors, match=r"nested more than|more than 64 parts"):
        load_recipe(path, {})


def test_keyrings_go_into_each_manifest_so_they_are_not_large(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"\x98" + bytes(2**20))
    verify = BASE + "[ostree.verify]\ngpg_keys = [{}]\n"
    assert load_recipe(write(tmp_path, verify.format('"a"')), {}).gpg_keys
    with pytest.raises(RecipeErrors, match="together they are larger than 2 MiB"):
        load_recipe(write(tmp_path, verify.format('"a", "b", "c"')), {})


LOAD = """
import re, sys, time
from pathlib import Path
from composer.errors import BadInput
from composer.recipe.load import load_recipe
began = time.monotonic()
try:
    load_recipe(Path(sys.argv[1]), {})
    print("taken")
except BadInput:
    print("refused")
peak = re.search("VmHWM: *([0-9]+) kB", Path("/proc/self/status").read_text().replace("\\t", " "))[1]
print(time.monotonic() - began, int(peak) // 1024)
"""
LARGE = {
    "many keys": "".join(f"k{number} = {number}\n" for number in range(60_000)),
    "many texts": "files = [" + '{path="/etc/x",content="{{ date }}"},' * 20_000 + "]\n",
    "many files": "".join(f'[[files]]\npath = "/etc/f{n}"\ncontent = "{{{{ date }}}}"\n' for n in range(999)),
    "wide lists": "x = [" + "1," * 300_000 + "]\n",
    "deep tables": "[" + "a." * 100_000 + "b]\n",
    "long texts": f'[variables]\nx = "{"a" * 2**18}"\n'
    + "".join(f'[[files]]\npath = "/etc/f{n}"\ncontent = "{"{{ x }}" * 4}"\n' for n in range(500)),
    "large sources": "".join(f'[[files]]\npath = "/etc/f{n}"\nsource = "large"\n' for n in range(9)),
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_any_recipe_takes_little_time_and_memory(tmp_path: Path, text: str) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**26 - 1)
    path = write(tmp_path, BASE + text)
    done = subprocess.run([sys.executable, "-c", LOAD, path], check=True, capture_output=True, text=True)
    said, figures = done.stdout.splitlines()
    seconds, mebibytes = figures.split()
    assert said == ("taken" if text is LARGE["many files"] else "refused")
    assert float(seconds) < 2, done.stdout
    assert int(mebibytes) < 256, done.stdout


def test_a_text_with_many_dots_is_no_key(tmp_path: Path) -> None:
    text = "see " + ".".join("a" * 100) + "\\n"
    files = f'[[files]]\npath = "/etc/x"\ncontent = """{text}"""\n'
    assert load_recipe(write(tmp_path, BASE + files), {}).contents["/etc/x"].startswith(b"see a.a.")
    with pytest.raises(RecipeErrors, match=r"line 5: .* more than 64 parts"):
        load_recipe(write(tmp_path, f"{BASE}{'.'.join('a' * 66)} = 1\n"), {})


@pytest.mark.parametrize("text", ["~\0/key", "~nobody-of-that-name/key", "a\0b"])
def test_what_is_no_path_of_a_host_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"names the home of nobody|is no path"):
        host_path(text, tmp_path)
