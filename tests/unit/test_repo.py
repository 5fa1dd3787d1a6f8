"""The host's repo: what its refs and commits hold, and what is said where it cannot be used."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError
from composer.export.http import http_export
from composer.plan import check_bootable
from composer.repo import Repo, open_repo


@pytest.fixture
def repo(tiny_repo: Path, tmp_path: Path, deadline: Deadline) -> Repo:
    return open_repo(str(tiny_repo), tmp_path, tmp_path / "mirrors", [], deadline)


def opened(source: str, folder: Path, refs: list[str] | None = None) -> Repo:
    return open_repo(source, folder, folder / "mirrors", refs or ["os/good"], Deadline.after(20))


def init(path: Path, mode: str) -> None:
    subprocess.run(["ostree", f"--repo={path}", "init", f"--mode={mode}"], check=True)


def test_a_folder_is_relative_to_the_recipe(tiny_repo: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "r").symlink_to(tiny_repo)
    assert opened("../r", tmp_path / "recipes").path == tiny_repo.resolve()


def test_resolve(repo: Repo, tiny_repo: Path, deadline: Deadline) -> None:
    commit = (tiny_repo / "refs/heads/os/good").read_text().strip()
    assert repo.resolve("os/good", deadline) == commit
    assert repo.resolve(commit, deadline) == commit
    assert repo.has_commit(commit, deadline)
    assert not repo.has_commit("0" * 64, deadline)
    assert repo.read(commit, "/usr/bin/sh", deadline) == b"this is usr/bin/sh\n"


def test_unknown_ref_lists_the_refs(repo: Repo, deadline: Deadline) -> None:
    with pytest.raises(BadInput, match=r"no ref 'os/goood'; it has os/good, ") as caught:
        repo.resolve("os/goood", deadline)
    assert "ostree --repo=" in (caught.value.hint or "")


def test_empty_repo(tmp_path: Path, deadline: Deadline) -> None:
    init(tmp_path / "empty", "archive")
    with pytest.raises(BadInput, match="none at all"):
        opened("empty", tmp_path).resolve("os/good", deadline)


@pytest.mark.parametrize("ref", ["--help", "-v", "--repo=/"])
def test_a_ref_is_no_option(repo: Repo, deadline: Deadline, ref: str) -> None:
    with pytest.raises(BadInput, match="has no ref"):
        repo.resolve(ref, deadline)


def test_no_repo(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no OSTree repo") as caught:
        opened(".", tmp_path)
    assert "ostree init" in (caught.value.hint or "")
    with pytest.raises(BadInput, match="is no OSTree repo"):
        opened("/nowhere/at/all", tmp_path)
    for config in ("", "[core]\n", "mode=archive", "[remote]\nmode=archive\n"):
        (tmp_path / "config").write_text(config)
        with pytest.raises(BadInput, match=r"no core\.mode"):
            opened(".", tmp_path)


@pytest.mark.parametrize("source", [".", "a\0b"])
def test_noise_as_repo(tmp_path: Path, source: str) -> None:
    (tmp_path / "config").write_bytes(b"[core]\nmode=\xff\n")
    with pytest.raises(BadInput):
        opened(source, tmp_path)


@pytest.mark.parametrize("mode", ["bare", "bare-user", "bare-user-only"])
def test_bare_repo(tmp_path: Path, mode: str) -> None:
    init(tmp_path / "bare", mode)
    with pytest.raises(BadInput, match=f"mode '{mode}'") as caught:
        opened("bare", tmp_path)
    assert "ostree pull-local" in (caught.value.hint or "")


def test_listing(repo: Repo, deadline: Deadline) -> None:
    tree = repo.tree("os/good", deadline)
    shared = {path.removeprefix("/usr/share/") for path in tree.paths if path.startswith("/usr/share/")}
    assert shared == {"a\nb", "Grüße", "a -> b", '"quoted"'}
    shell = tree.paths["/usr/bin/sh"]
    assert (shell.type, shell.mode, shell.uid, shell.size) == ("-", 0o4755, 0, 19)
    link = tree.paths["/usr/bin/dash"]
    assert (link.type, link.target) == ("l", "sh")
    assert tree.paths["/usr/share"].type == "d"
    assert tree.programs() == ["dash", "sh", "sshd"]
    files = sum(item.type == "-" for item in tree.paths.values())
    assert tree.content_bytes == files * 4096 + 512 * len(tree.paths)


def test_kernel(repo: Repo, deadline: Deadline) -> None:
    for tree in (repo.tree("os/good", deadline), repo.kernel_tree("os/good", deadline)):
        kernel = tree.kernel()
        assert kernel.version == "6.1"
        assert kernel.vmlinuz == "/usr/lib/modules/6.1/vmlinuz"
        check_bootable(tree)


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("os/no-kernel", "has no kernel"),
        ("os/two-kernels", r"2 kernels: 5\.0, 6\.1"),
        ("os/no-initramfs", r"no initramfs: no file /usr/lib/modules/6\.1/initramfs\.img"),
    ],
)
def test_commit_that_cannot_boot(repo: Repo, deadline: Deadline, ref: str, why: str) -> None:
    for tree in (repo.tree(ref, deadline), repo.kernel_tree(ref, deadline)):
        with pytest.raises(BadInput, match=why):
            check_bootable(tree)


def test_damaged_commit(tmp_path: Path, deadline: Deadline) -> None:
    init(tmp_path / "r", "archive")
    (tmp_path / "r/refs/heads/os").write_text("1" * 64 + "\n")
    repo = opened("r", tmp_path)
    with pytest.raises(BadInput, match="cannot be read") as caught:
        repo.tree(repo.resolve("os", deadline), deadline)
    assert "fsck" in (caught.value.hint or "")


def test_mirror_of_a_url(repo: Repo, tmp_path: Path, deadline: Deadline) -> None:
    with http_export(repo) as export:
        mirror = opened(f"{export.host_url}/", tmp_path)
        first = export.served.files
        opened(export.host_url, tmp_path)
        assert export.served.files - first < first / 2  # what is there is not fetched again
    assert mirror.source == export.host_url
    assert mirror.path.parent == tmp_path / "mirrors"
    commit = mirror.resolve("os/good", deadline)
    assert commit == repo.resolve("os/good", deadline)
    assert mirror.tree(commit, deadline) == repo.tree(commit, deadline)
    with http_export(mirror) as again:
        assert opened(again.host_url, tmp_path).resolve("os/good", deadline) == commit


def test_mirror_has_what_was_asked_for(repo: Repo, tmp_path: Path) -> None:
    with http_export(repo) as export:
        with pytest.raises(BadInput, match="no ref 'os/none'"):
            opened(export.host_url, tmp_path, ["os/good", "os/none"])
        commit = repo.resolve("os/good", Deadline.after(20))
        assert opened(export.host_url, tmp_path, [commit]).has_commit(commit, Deadline.after(20))


def test_unreachable_url(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(BadInput, match=r"cannot be reached: .*Connection refused"):
            opened(f"http://127.0.0.1:{taken.getsockname()[1]}/repo", tmp_path)


@pytest.mark.parametrize("url", ["http://", "http://[", "https://a b/", "http://127.0.0.1:99999999/"])
def test_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(ComposerError):
        opened(url, tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve a folder that is no repo."""
    (tmp_path / "web").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("config", [None, b"<html>", b"\xff\xfe"])
def test_url_of_no_repo(web: str, tmp_path: Path, config: bytes | None) -> None:
    if config is not None:
        (tmp_path / "web/config").write_bytes(config)
    with pytest.raises(BadInput, match="no OSTree repo"):
        opened(web, tmp_path)
    assert not (tmp_path / "mirrors").exists()
