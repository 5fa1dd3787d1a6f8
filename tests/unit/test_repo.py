"""The host's repo: what its refs and commits hold, and what is said where it cannot be used."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from composer.compose.source import RepoSource, opened_source
from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, RepoDamaged
from composer.export.http import http_export
from composer.plan import check_bootable
from composer.repo.download import Downloads
from composer.repo.local import Repo, open_repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls, Upstream
from tests.web import web_server


@pytest.fixture
def repo(tiny_repo: Path, tmp_path: Path) -> Repo:
    return open_repo(str(tiny_repo), tmp_path)


def remote(url: str, cache: Path, tls: Tls = Tls()) -> AbstractContextManager[RepoSource]:  # noqa: B008
    cache.mkdir(exist_ok=True)
    return opened_source(url, cache, cache, Trust(), tls, Deadline.after(20))


@pytest.mark.parametrize(
    "path",
    ["objects/../../x", "../x", "/etc/passwd", "config", "refs/heads/../x", "refs/heads/.x", "",
     "objects/ab/x.commit", "objects/" + "a" * 2 + "/" + "a" * 62 + ".commit\n"],
)  # fmt: skip
def test_the_downloader_writes_what_a_repo_has_and_nothing_else(
    tmp_path: Path, deadline: Deadline, path: str
) -> None:
    (tmp_path / "x").write_text("there")
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    with web_server(tmp_path) as url, pytest.raises(ComposerError, match="no OSTree repo has"):
        Downloads(Upstream(url, Tls(), deadline), folder).has(path)
    assert list(folder.iterdir()) == []


def test_the_downloader_follows_no_link(tmp_path: Path, deadline: Deadline) -> None:
    (tmp_path / "served/refs/heads").mkdir(parents=True)
    (tmp_path / "served/refs/heads/main").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder/refs").symlink_to(tmp_path / "outside")
    with web_server(tmp_path / "served") as url:
        downloads = Downloads(Upstream(url, Tls(), deadline), tmp_path / "folder")
        with pytest.raises(OSError, match="refs"):
            downloads("refs/heads/main")
        (tmp_path / "folder/refs").unlink()
        assert downloads.has("refs/heads/main")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_larger_than_any_of_its_kind_is_not_downloaded(tmp_path: Path, deadline: Deadline) -> None:
    (tmp_path / "x").write_bytes(bytes(1000))
    with web_server(tmp_path) as url:
        upstream = Upstream(url, Tls(), deadline)
        with pytest.raises(ComposerError, match="larger than a file of that kind"):
            upstream.download("x", tmp_path / "got", 999)
        assert not (tmp_path / "got").exists()
        assert upstream.download("x", tmp_path / "got", 1000)


def test_a_planted_commit_is_not_believed(repo: Repo, tmp_path: Path, deadline: Deadline) -> None:
    """What lies in the composer's own repo under a commit's name is hashed before ostree takes it."""
    commit = repo.resolve("os/good", deadline)
    with opened_source(str(repo.path), tmp_path, tmp_path, Trust(), Tls(), deadline) as source:
        own = source.fetch("os/no-kernel", repo.resolve("os/no-kernel", deadline))
        planted = own.object_path(f"{commit}.commit")
        planted.parent.mkdir(exist_ok=True)
        other = own.object_path(f"{repo.resolve('os/no-kernel', deadline)}.commit")
        planted.write_bytes(other.read_bytes())
        fetched = source.fetch("os/good", commit)
        assert hashlib.sha256(planted.read_bytes()).hexdigest() == commit
        assert "/usr/bin/sh" in fetched.tree(commit, deadline).paths


def init(path: Path, mode: str) -> None:
    subprocess.run(["ostree", f"--repo={path}", "init", f"--mode={mode}"], check=True)


def test_a_folder_is_relative_to_the_recipe(tiny_repo: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "r").symlink_to(tiny_repo)
    assert open_repo("../r", tmp_path / "recipes").path == tiny_repo.resolve()


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
        open_repo("empty", tmp_path).resolve("os/good", deadline)


@pytest.mark.parametrize("ref", ["--help", "-v", "--repo=/"])
def test_a_ref_is_no_option(repo: Repo, deadline: Deadline, ref: str) -> None:
    with pytest.raises(BadInput, match="has no ref"):
        repo.resolve(ref, deadline)


def test_no_repo(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no OSTree repo") as caught:
        open_repo(".", tmp_path)
    assert "ostree init" in (caught.value.hint or "")
    with pytest.raises(BadInput, match="is no OSTree repo"):
        open_repo("/nowhere/at/all", tmp_path)
    for config in ("", "[core]\n", "mode=archive", "[remote]\nmode=archive\n"):
        (tmp_path / "config").write_text(config)
        with pytest.raises(BadInput, match=r"no core\.mode"):
            open_repo(".", tmp_path)


@pytest.mark.parametrize("source", [".", "a\0b"])
def test_noise_as_repo(tmp_path: Path, source: str) -> None:
    (tmp_path / "config").write_bytes(b"[core]\nmode=\xff\n")
    with pytest.raises(BadInput):
        open_repo(source, tmp_path)


@pytest.mark.parametrize("mode", ["bare-user", "bare-user-only", "archive"])
def test_any_mode_will_do_but_only_archive_over_http(
    repo: Repo, tmp_path: Path, deadline: Deadline, mode: str
) -> None:
    init(tmp_path / "r", mode)
    commit = repo.resolve("os/good", deadline)
    plain = "os/plain"  # bare-user-only holds no owners and no setuid
    ref = plain if mode == "bare-user-only" else "os/good"
    if ref == plain:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "file").write_text("x")
        argv = ["commit", "-b", ref, "--canonical-permissions", f"--tree=dir={tree}"]
        subprocess.run(["ostree", f"--repo={tmp_path}/r", *argv], check=True, stdout=subprocess.DEVNULL)
    else:
        argv = ["pull-local", str(repo.path), ref]
        subprocess.run(["ostree", f"--repo={tmp_path}/r", *argv], check=True, stdout=subprocess.DEVNULL)
    with opened_source("r", tmp_path, tmp_path / "cache", Trust(), Tls(), deadline) as source:
        commit = source.resolve(ref)
        assert source.fetch(ref, commit).has_commit(commit, deadline)
        if mode == "archive":
            with source.exported() as export:
                assert export.url
        else:
            with pytest.raises(BadInput, match=f"mode '{mode}'") as caught, source.exported():
                pass
            assert "--transport delta" in (caught.value.hint or "")


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
    repo = open_repo("r", tmp_path)
    with pytest.raises(BadInput, match="cannot be read") as caught:
        repo.tree(repo.resolve("os", deadline), deadline)
    assert "fsck" in (caught.value.hint or "")


def test_a_url(repo: Repo, tmp_path: Path, deadline: Deadline) -> None:
    with http_export(repo.path) as export:
        with remote(f"{export.url}/", tmp_path / "cache") as source:
            assert source.named == export.url
            commit = source.resolve("os/good")
            assert commit == repo.resolve("os/good", deadline)
            fetched = source.fetch("os/good", commit)
            assert fetched.tree(commit, deadline) == repo.tree(commit, deadline)
            # And a helper pulls through it.
            with source.exported() as through:
                mine = f"--repo={tmp_path}/mine"
                init(tmp_path / "mine", "bare-user")
                adding = ["remote", "add", "--no-gpg-verify", "o", through.url]
                for argv in (adding, ["pull", "o", "os/good"]):
                    subprocess.run(["ostree", mine, *argv], check=True, stdout=subprocess.DEVNULL)
        first = export.served.files
        with remote(export.url, tmp_path / "cache") as source:
            source.fetch("os/good", source.resolve("os/good"))
        assert export.served.files - first < first / 4, "what is there is not fetched again"
    assert not list((tmp_path / "cache").glob(".remote.*"))


def test_a_url_has_what_was_asked_for(repo: Repo, tmp_path: Path) -> None:
    with http_export(repo.path) as export, remote(export.url, tmp_path / "cache") as source:
        with pytest.raises(BadInput, match="no ref 'os/none'"):
            source.resolve("os/none")
        commit = repo.resolve("os/good", Deadline.after(20))
        assert source.resolve(commit) == commit
        assert source.fetch(commit, commit).has_commit(commit, Deadline.after(20))


def test_a_url_tells_which_commits_it_has(repo: Repo, tmp_path: Path, deadline: Deadline) -> None:
    with http_export(repo.path) as export, remote(export.url, tmp_path / "cache") as source:
        assert source.has_commit(repo.resolve("os/good", deadline))
        assert not source.has_commit("0" * 64)


@pytest.mark.parametrize("way", ["url", "folder"])
def test_where_a_damaged_repo_is_to_be_checked(
    tiny_repo: Path, tmp_path: Path, deadline: Deadline, way: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_repo, damaged, symlinks=True)
    commit = (damaged / "refs/heads/os/good").read_text().strip()
    (damaged / f"objects/{commit[:2]}/{commit[2:]}.commit").write_bytes(b"x" * 200)
    with ExitStack() as stack:
        named = stack.enter_context(http_export(damaged)).url if way == "url" else str(damaged)
        source = stack.enter_context(remote(named, tmp_path / "cache"))
        with pytest.raises(RepoDamaged) as caught:
            source.fetch("os/good", commit)
    folder, where = ("FOLDER", ", on the machine that has it") if way == "url" else (damaged, "")
    assert caught.value.hint == f"ostree --repo={folder} fsck --all   names all that is{where}"


def use(url: str, cache: Path) -> None:
    with remote(url, cache) as source:
        source.resolve("os/good")


def test_unreachable_url(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(BadInput, match=r"cannot be reached: .*Connection refused"):
            use(f"http://127.0.0.1:{taken.getsockname()[1]}/repo", tmp_path)


@pytest.mark.parametrize("url", ["http://", "http://[", "https://a b/", "http://127.0.0.1:99999999/"])
def test_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(ComposerError):
        use(url, tmp_path)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve a folder that is no repo."""
    (tmp_path / "web").mkdir()
    with web_server(tmp_path / "web") as url:
        yield url


@pytest.mark.parametrize("config", [None, b"<html>", b"\xff\xfe"])
def test_url_of_no_repo(web: str, tmp_path: Path, config: bytes | None) -> None:
    if config is not None:
        (tmp_path / "web/config").write_bytes(config)
    with pytest.raises(BadInput, match="no OSTree repo"):
        use(web, tmp_path)
