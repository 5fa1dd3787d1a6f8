"""Which files of the host a recipe may name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from composer.errors import RecipeErrors
from composer.recipe.load import LoadedRecipe, load_recipe
from tests.certificates import Authority
from tests.signing import Gpg

BASE = 'name = "demo"\n[ostree]\nrepo = "repo"\nref = "os/demo"\n'
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0a5ZPqgT1GxmBYHbn0pRr0bkRqLx3pTxkB1hJqCLtA test"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def source_of(name: str | Path) -> str:
    return f'[[files]]\npath = "/etc/x"\nsource = "{name}"\n'


def load(home: Path, more: str, *allowed: Path) -> LoadedRecipe:
    path = home / "demo.toml"
    path.write_text(BASE + more)
    return load_recipe(path, {}, allowed)


def refused(home: Path, more: str, why: str, *allowed: Path) -> None:
    with pytest.raises(RecipeErrors, match=why):
        load(home, more, *allowed)


def test_a_file_below_the_recipes_folder(home: Path) -> None:
    (home / "inner").mkdir()
    (home / "inner/motd").write_text("hello")
    loaded = load(home, source_of("inner/motd"))
    assert loaded.contents == {"/etc/x": b"hello"}
    (named,) = loaded.host_files
    assert (named.key, named.path, named.bytes) == ("files[0].source", home / "inner/motd", 5)


@pytest.mark.parametrize("way", ["../secret", "absolute", "link", "folder-link"])
def test_a_file_elsewhere_wants_leave(home: Path, way: str) -> None:
    secret = home.parent / "secret"
    secret.write_text("secret")
    (home / "link").symlink_to("../secret")
    (home / "folder-link").symlink_to("..")
    name = {"absolute": str(secret), "folder-link": "folder-link/secret"}.get(way, way)
    refused(home, source_of(name), f"outside the recipe's folder.*--allow-file .*{Path(name).name}")
    assert load(home, source_of(name), secret).contents == {"/etc/x": b"secret"}
    other = home.parent / "other"
    other.touch()
    refused(home, source_of(name), "outside", other)


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/self/pagemap", "/sys/kernel/notes", "/dev/zero"]
)
def test_files_of_the_kernel_are_refused_whatever_is_allowed(home: Path, path: str) -> None:
    """Also by a link; some of them have no size, and no end."""
    (home / "link").symlink_to(path)
    for name in (path, "link"):
        refused(home, source_of(name), "a file of the kernel", Path(path))


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_regular_file(home: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(home / "odd")
    else:
        (home / "odd").mkdir()
    refused(home, source_of("odd"), "no regular file")


def test_a_large_file_is_not_read_whole(home: Path) -> None:
    with (home / "large").open("wb") as file:
        file.truncate(2**40)
    refused(home, source_of("large"), "larger than 65536 KiB")


def test_ssh_keys_lie_anywhere_if_they_are_public(home: Path) -> None:
    users = '[[users]]\nname = "admin"\nssh_key_files = ["../key"]\n'
    key = home.parent / "key"
    key.write_text(f"# mine\n{KEY}\n\n")
    assert load(home, users).ssh_keys["admin"] == (KEY,)
    private, account = "-----BEGIN OPENSSH PRIVATE KEY-----\n", "root:x:0:0:root:/root:/bin/sh\n"
    for text in (private, f"{KEY}\n{account}", account):
        key.write_text(text)
        refused(home, users, "private key|no OpenSSH public key")


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Gpg:
    made = Gpg(tmp_path_factory.mktemp("g") / "h").make()
    made.end()
    return made


def exported(gpg: Gpg, *options: str) -> bytes:
    alone = ["--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    argv = ["gpg", "--homedir", str(gpg.home), *alone, *options]
    content = subprocess.run(argv, check=True, capture_output=True).stdout
    gpg.end()
    return content


def test_keyrings_lie_anywhere_if_they_are_public(home: Path, gpg: Gpg) -> None:
    verify = '[ostree.verify]\ngpg_keys = ["../keys"]\n'
    keys = home.parent / "keys"
    for public in (gpg.public(), exported(gpg, "--armor", "--export")):
        keys.write_bytes(public)
        assert load(home, verify).gpg_keys == (public,)
    secret = exported(gpg, "--export-secret-keys")
    assert secret[:1] >= b"\x80"
    for other in (secret, gpg.public() + secret, gpg.public()[:-1], b"\x98" + bytes(200), b"\x99secret", b""):
        keys.write_bytes(other)
        refused(home, verify, "outside the recipe's folder")


def test_certificates_lie_anywhere_and_keys_do_not(home: Path) -> None:
    authority = Authority(home.parent)
    certificate, key = authority.issue("127.0.0.1")
    tls = f'[ostree.tls]\ncertificate = "{certificate}"\nca = "{authority.path}"\n'
    assert load(home, tls).recipe.ostree.tls is not None
    refused(home, f'{tls}key = "{key}"\n', "ostree.tls.key: outside the recipe's folder")
    assert load(home, f'{tls}key = "{key}"\n', key)
    both, text = home.parent / "both", home.parent / "text"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    text.write_text("-----BEGIN CERTIFICATE-----\n=!=\n-----END CERTIFICATE-----\n")
    for odd in (both, key, text):
        refused(home, f'[ostree.tls]\ncertificate = "{odd}"\n', "outside the recipe's folder")


def test_all_that_is_wrong_is_told_at_once(home: Path) -> None:
    more = source_of("none") + source_of("/proc/version").replace("/etc/x", "/etc/y")
    with pytest.raises(RecipeErrors) as caught:
        load(home, more)
    assert len(caught.value.faults) == 2


def test_recipe_show_tells_what_is_read(
    home: Path, composer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (home.parent / "motd").write_text("hello")
    path = home / "demo.toml"
    path.write_text(BASE + source_of("../motd"))
    assert composer("recipe", "check", path).returncode == 2
    shown = composer("recipe", "show", path, "--allow-file", home.parent / "motd")
    assert '"key": "files[0].source"' in shown.stdout
    assert str(home.parent / "motd") in shown.stdout
