"""How a commit moves: the choice among transports, what a delta disk holds, what a web server may do."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from composer.compose.source import opened_source
from composer.compose.supply import Supply, obstacles
from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, DeadlineExpired, GuestStepFailed
from composer.events import Reporter, Tape
from composer.export.choice import Choice, choose
from composer.export.delta import Wanted, cache_of, delta_disk, lacking, shared_folder
from composer.export.http import http_export
from composer.helper.bootstrap import BootstrapImage
from composer.repo.checked import CheckedRepo
from composer.repo.local import Repo, open_repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls, Upstream, moved
from composer.store.cache import Entry
from tests.certificates import Authority
from tests.web import served, web_server

REF = "os/good"


def image(*modules: str) -> BootstrapImage:
    return BootstrapImage(
        Entry(Path("/none"), "none", {"modules": modules, "kernel": "6.1-cloud"}), fresh=False
    )


def test_auto_takes_the_delta_disk_and_says_why() -> None:
    assert choose("auto", {}).transport == "delta"
    choice = choose("auto", {"delta": "no mke2fs"})
    assert choice.transport == "http"
    assert "no delta: no mke2fs" in choice.why


def test_one_that_was_asked_for_is_taken_or_refused_with_the_reason() -> None:
    assert choose("9p", {"virtiofs": "x"}).transport == "9p"
    with pytest.raises(BadInput, match="9p cannot work here: the kernel has none") as caught:
        choose("9p", {"9p": "the kernel has none", "virtiofs": "x"})
    assert "one of: delta, http" in (caught.value.hint or "")
    with pytest.raises(BadInput, match="no transport can work"):
        choose("auto", {"delta": "a", "http": "b"})


def test_what_keeps_a_transport_from_working(
    tiny_repo: Path, tmp_path: Path, deadline: Deadline, fake_tool: Callable[[str, str], Path]
) -> None:
    with opened_source(str(tiny_repo), tmp_path, tmp_path, Trust(), Tls(), deadline) as source:
        found = obstacles(source, image(), "embed")
        assert "6.1-cloud has no 9p" in found["9p"]
        assert "has no virtiofs" in found["virtiofs"]
        assert set(found) == {"9p", "virtiofs"}
        found = obstacles(source, image("9pnet_virtio", "virtiofs"), "qemu:///system")
        assert "may name another" in found["9p"]
    subprocess.run(["ostree", f"--repo={tmp_path}/bare", "init", "--mode=bare-user"], check=True)
    with opened_source("bare", tmp_path, tmp_path, Trust(), Tls(), deadline) as source:
        assert "mode 'bare-user'" in obstacles(source, image(), "embed")["http"]


def test_without_the_tool_there_is_no_delta_disk(
    tiny_repo: Path, tmp_path: Path, deadline: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.compose.supply.has_tool", lambda _: False)
    with opened_source(str(tiny_repo), tmp_path, tmp_path, Trust(), Tls(), deadline) as source:
        assert "apt install e2fsprogs" in obstacles(source, image(), "embed")["delta"]


@pytest.fixture
def own(tiny_repo: Path, tmp_path: Path, deadline: Deadline) -> tuple[Repo, str, str]:
    """The composer's own repo with a commit and one that came after it."""
    shutil.copytree(tiny_repo, tmp_path / "r", symlinks=True)
    source = open_repo("r", tmp_path)
    first = source.resolve(REF, deadline)
    changed = tmp_path / "changed/usr/share/new"
    changed.mkdir(parents=True)
    (changed / "file").write_text("new")
    argv = ["commit", "-b", REF, f"--tree=ref={first}", f"--tree=dir={tmp_path}/changed", "--owner-uid=0"]
    second = source.ostree(*argv, "--owner-gid=0", deadline=deadline).strip()
    checked = CheckedRepo(tmp_path / "cache/repo")
    (tmp_path / "cache").mkdir()
    for commit in (first, second):
        checked.fetch(source.source, f"file://{source.path}", REF, commit, Trust(), deadline)
    return checked.of(""), first, second


def inside(disk: Path, path: str) -> bytes:
    """Read a file of an ext4 image, without mounting it."""
    return subprocess.run(["debugfs", "-R", f"cat {path}", disk], check=True, capture_output=True).stdout


def test_only_what_is_missing_is_in_a_delta(
    own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline
) -> None:
    repo, first, second = own
    everything = lacking(repo, Wanted(second), deadline)
    missing = lacking(repo, Wanted(second, frozenset({first})), deadline)
    # The file, its new folder, /usr/share, /usr, the root, the commit.
    assert [name.partition(".")[2] for name in missing].count("file") == 1
    assert len(missing) == 6 < len(everything)
    # A commit that nobody knows is one that the disk does not have.
    assert lacking(repo, Wanted(second, frozenset({"0" * 64})), deadline) == everything


def test_a_delta_disk(own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline) -> None:
    repo, first, second = own
    cache = cache_of(tmp_path / "cache")
    plain = delta_disk(cache, repo, Wanted(second, frozenset({first})), deadline)
    assert plain.fresh
    assert plain.objects == 6
    assert b"mode=bare-user" in inside(plain.image, "/config")
    assert inside(plain.image, "/static-delta") == b""
    again = delta_disk(cache, repo, Wanted(second, frozenset({first})), deadline)
    assert not again.fresh
    static = delta_disk(cache, repo, Wanted(second, frozenset({first}), first), deadline)
    assert static.fresh
    assert len(inside(static.image, "/static-delta")) > 100
    subprocess.run(["e2fsck", "-fn", static.image], check=True, capture_output=True)
    whole = delta_disk(cache, repo, Wanted(second), deadline)
    assert whole.objects > 6


def test_a_static_delta_wants_its_base_whole(
    own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline
) -> None:
    repo, _, second = own
    unknown = "0" * 64
    made = delta_disk(
        cache_of(tmp_path / "cache"), repo, Wanted(second, frozenset({unknown}), unknown), deadline
    )
    assert inside(made.image, "/static-delta") == b""


def test_a_shared_folder_is_a_repo_of_copies(
    own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline
) -> None:
    repo, first, second = own
    wanted = Wanted(second, frozenset({first}))
    with shared_folder(tmp_path, repo, wanted, deadline) as folder:
        for path in (folder / "objects").rglob("*.file"):
            original = repo.path / path.relative_to(folder)
            assert path.stat().st_ino != original.stat().st_ino
            assert os.getxattr(path, "user.ostreemeta") == os.getxattr(original, "user.ostreemeta")
    assert not folder.exists()


class Quiet(BaseHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Moody(Quiet):
    """Breaks off in the middle, is busy at times, and resumes where it is asked to."""

    content = os.urandom(300_000)
    breaks = 2
    busy = 1

    def do_GET(self) -> None:
        cls = type(self)
        if cls.busy:
            cls.busy -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        rest = self.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if cls.breaks:
            cls.breaks -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        else:
            self.wfile.write(rest)


def test_a_download_is_retried_and_resumed(tmp_path: Path, deadline: Deadline) -> None:
    Moody.breaks, Moody.busy = 2, 1
    with served(Moody) as url:
        upstream = Upstream(url, Tls(), deadline)
        assert upstream.download("objects/x", tmp_path / "x", 2**30)
        upstream.close()
    assert (tmp_path / "x").read_bytes() == Moody.content
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_one_that_breaks_off_each_time_fails_and_leaves_nothing(tmp_path: Path, deadline: Deadline) -> None:
    Moody.breaks, Moody.busy = 1000, 0
    with served(Moody) as url, pytest.raises(ComposerError, match="breaks off"):
        Upstream(url, Tls(), deadline).download("objects/x", tmp_path / "x", 2**30)
    assert list(tmp_path.iterdir()) == []


class Slow(Quiet):
    """Says a byte now and then."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.1)


class Later(Quiet):
    """Asks to be asked again in an hour."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_server_that_says_little_holds_nobody_up(tmp_path: Path) -> None:
    asks: list[Callable[[Upstream], object]] = [
        lambda upstream: upstream.text("config"),
        lambda upstream: upstream.download("objects/x", tmp_path / "x", 2**30),
    ]
    began = time.monotonic()
    with served(Slow) as url:
        for ask in asks:
            with pytest.raises(DeadlineExpired):
                ask(Upstream(url, Tls(), Deadline.after(0.5)))
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_asks_for_an_hour_is_not_waited_for(deadline: Deadline) -> None:
    began = time.monotonic()
    with served(Later) as url, pytest.raises(ComposerError, match="503"):
        Upstream(url, Tls(), deadline).text("config")
    assert time.monotonic() - began < 15


class Endless(Quiet):
    """Sends a body without an end, with any status."""

    status = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(2**16))


@pytest.mark.parametrize(
    ("status", "why"), [(301, "redirects it more than 10"), (503, "answers with errors")]
)
def test_an_unwanted_body_without_an_end_is_not_read(status: int, why: str) -> None:
    handler = type("_Endless", (Endless,), {"status": status})
    began = time.monotonic()
    with served(handler) as url, pytest.raises(ComposerError, match=why):
        Upstream(url, Tls(), Deadline.after(2)).text("config")
    assert time.monotonic() - began < 10


class Mover(Quiet):
    """Has each file under another address."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set[tuple[str, int]]] = set()

    def do_GET(self) -> None:
        self.connections.add(self.client_address)
        here = self.path.startswith("/store/")
        body = self.path.encode()
        self.send_response(200 if here else 302)
        if not here:
            self.send_header("Location", f"/store{self.path}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_redirect_is_followed_on_the_same_connection(tmp_path: Path, deadline: Deadline) -> None:
    with served(Mover) as url:
        upstream = Upstream(url, Tls(), deadline)
        assert upstream.text("config") == "/store/config"
        assert upstream.download("objects/x", tmp_path / "x", 2**30)
        upstream.close()
    assert (tmp_path / "x").read_bytes() == b"/store/objects/x"
    assert len(Mover.connections) == 1


def test_where_a_redirect_may_lead() -> None:
    assert moved("https://a/repo/config", "/x/config") == "https://a/x/config"
    assert moved("http://a/config", "https://b:8/config") == "https://b:8/config"
    for location in (
        "",
        "file:///etc/passwd",
        "https://:8/",
        "https://[",
        "http://a/",
        "https://u:p@b/config",
    ):
        with pytest.raises(ComposerError, match="redirects"):
            moved("https://a/config", location)


def test_a_small_file_that_breaks_off_is_told(tmp_path: Path, deadline: Deadline) -> None:
    Moody.breaks, Moody.busy = 1, 0
    with served(Moody) as url, pytest.raises(BadInput, match="cannot be reached"):
        Upstream(url, Tls(), deadline).text("config")


def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, deadline: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    Moody.breaks, Moody.busy = 0, 0
    with served(Moody) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        upstream = Upstream("http://repo.example.org/r", Tls(), deadline)
        assert upstream.download("objects/x", tmp_path / "x", 2**30)
    assert (tmp_path / "x").read_bytes() == Moody.content


def test_a_plain_proxy_brings_a_repo_and_never_hears_of_our_export(
    tiny_repo: Path, tmp_path: Path, deadline: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ostree pulls from an export on loopback, whose URL has a token; a proxy is for what is far away."""
    asked: list[str] = []
    (tmp_path / "web").mkdir()
    (tmp_path / "web/r").symlink_to(tiny_repo)

    class Proxy(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = tmp_path / "web" / self.path.partition("repo.example.org/")[2]
            content = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with served(Proxy) as proxy:
        monkeypatch.delenv("no_proxy", raising=False)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        cache = tmp_path / "cache-behind-proxy"
        named = "http://repo.example.org/r"
        with opened_source(named, tmp_path, cache, Trust(), Tls(), deadline) as source:
            commit = source.resolve("os/good")
            assert source.fetch("os/good", commit).has_commit(commit, deadline)
    assert asked
    assert [url for url in asked if not url.startswith(f"{named}/")] == []


def test_a_published_delta_is_used(own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline) -> None:
    _, first, second = own
    repo = Repo(tmp_path / "r", "r")
    repo.ostree("static-delta", "generate", f"--from={first}", f"--to={second}", deadline=deadline)
    repo.ostree("summary", "--update", deadline=deadline)
    asked: list[str] = []
    cache = tmp_path / "cache-of-url"
    with (
        web_server(repo.path, asked) as url,
        opened_source(url, tmp_path, cache, Trust(), Tls(), deadline) as source,
    ):
        source.fetch(REF, first)
        asked.clear()
        source.fetch(REF, second)
    assert [path for path in asked if path.startswith("/deltas/") and path.endswith("/superblock")]
    assert [path for path in asked if path.endswith(".filez")] == []


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_client_certificates(
    tmp_path: Path, deadline: Deadline, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the right one gets in, and a server that the authority does not vouch for is not believed."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x").write_text("inside")
    # requests takes these for more than what a session was told (psf/requests#3829).
    (tmp_path / "others").mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path / "others").path))
    certificate, key = authority.issue("127.0.0.1")
    with web_server(tmp_path / "files", tls=authority.server(certificate, key)) as url:
        mine = Upstream(url, Tls(certificate, key, authority.path), deadline)
        assert mine.text("x") == "inside"
        mine.close()
        for tls in (Tls(ca=authority.path), Tls(certificate, key)):
            with pytest.raises(BadInput, match=r"cannot be reached: .*(certificate|alert|EOF)"):
                Upstream(url, tls, deadline).text("x")


class Closed(Moody):
    """Lets in who has the right name and password (RFC 7617)."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == f"Basic {base64.b64encode(b'me:secret').decode()}":
            super().do_GET()
        else:
            self.send_error(401)


def test_a_password_comes_from_netrc(
    tmp_path: Path, deadline: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    Moody.breaks, Moody.busy = 0, 0
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    with served(Closed) as url:
        with pytest.raises(ComposerError, match="401"):
            Upstream(url, Tls(), deadline).download("objects/x", tmp_path / "x", 2**30)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert Upstream(url, Tls(), deadline).download("objects/x", tmp_path / "x", 2**30)
        with pytest.raises(BadInput, match="password in it") as caught:
            Upstream(url.replace("//", "//me:secret@"), Tls(), deadline)
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_the_token_of_an_export_is_told_to_nobody(
    own: tuple[Repo, str, str], tmp_path: Path, fake_tool: Callable[[str, str], Path]
) -> None:
    _, _, second = own
    log, real = tmp_path / "argv", shutil.which("ostree")
    with http_export(tmp_path / "r") as export, ExitStack() as stack:
        cache = tmp_path / "cache-of-url"
        source = stack.enter_context(
            opened_source(export.url, tmp_path, cache, Trust(), Tls(), Deadline.after(60))
        )
        assert source.through is not None
        token = source.through.token
        fake_tool("ostree", f'#!/bin/sh\necho "$@" >>\'{log}\'\nexec {real} "$@"\n')
        source.fetch("os/good", second)
        with pytest.raises(ComposerError) as caught:
            source.fetch("os/good", "0" * 64)
        assert "pull" in log.read_text()
        assert token not in log.read_text() + f"{caught.value.message} {caught.value.detail}"
        assert token not in (source.checked.path / "config").read_text()


class Listening:
    """A shell that passes connections on, as far as anybody here knows."""

    @contextmanager
    def listening(self, serve: object, deadline: Deadline) -> Iterator[int]:
        yield 4711


def test_nor_is_what_a_guest_says_of_it(
    own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline
) -> None:
    with opened_source("r", tmp_path, tmp_path / "c", Trust(), Tls(), deadline) as source:
        supply = Supply(Choice("http", ""), source, None, None)
        helper = SimpleNamespace(shell=Listening())
        workshop = SimpleNamespace(deadline=deadline, reporter=Reporter(Tape()))
        urls: list[str] = []

        def fail() -> None:
            with supply.reaching(helper, workshop) as where:  # type: ignore[arg-type]
                urls.append(where["export-url"].decode())
                raise GuestStepFailed("pull", f"While fetching {urls[0]}/x: 404", detail=f"at {urls[0]}")

        with pytest.raises(GuestStepFailed) as caught:
            fail()
    token = urls[0].rpartition("/")[2]
    assert len(token) > 20
    assert token not in f"{caught.value} {caught.value.message} {caught.value.detail}"
    assert "While fetching http://127.0.0.1:4711/..." in str(caught.value)


@pytest.mark.parametrize("way", ["folder", "url"])
def test_a_guest_waits_for_what_a_slow_server_sends(
    own: tuple[Repo, str, str], tmp_path: Path, deadline: Deadline, way: str
) -> None:
    """It does nothing meanwhile, which is no sign of a step that hangs."""
    with ExitStack() as stack:
        named = stack.enter_context(http_export(tmp_path / "r")).url if way == "url" else "r"
        opened = opened_source(named, tmp_path, tmp_path / "c", Trust(), Tls(), deadline)
        supply = Supply(Choice("http", ""), stack.enter_context(opened), None, None)
        helper = SimpleNamespace(shell=Listening())
        workshop = SimpleNamespace(deadline=deadline, reporter=Reporter(Tape()))
        where = stack.enter_context(supply.reaching(helper, workshop))  # type: ignore[arg-type]
        assert ("stall-limit" in where) == (way == "url")


RECIPE = """
name = "x"
[ostree]
repo = "r"
ref = "os/good"
"""


def test_repo_deltas(own: tuple[Repo, str, str], tmp_path: Path, composer: Callable[..., Any]) -> None:
    _, first, second = own
    (tmp_path / "r.toml").write_text(RECIPE)
    ran = composer("repo", "deltas", tmp_path / "r.toml", "--from", first)
    assert ran.returncode == 0, ran.stderr
    assert f"delta from {first[:12]} to {second[:12]} published" in ran.stdout
    listed = subprocess.run(
        ["ostree", f"--repo={tmp_path}/r", "static-delta", "list"], check=True, capture_output=True, text=True
    )
    assert f"{first}-{second}" in listed.stdout
    assert (tmp_path / "r/summary").exists()
    ran = composer("repo", "deltas", tmp_path / "r.toml")
    assert ran.returncode == 0, "the parent is the former commit"
    ran = composer("repo", "deltas", tmp_path / "r.toml", "--from", "os/none")
    assert ran.returncode == 2
    assert "no former commit" in ran.stderr
    (tmp_path / "r/summary.sig").write_text("signed")
    ran = composer("repo", "deltas", tmp_path / "r.toml", "--from", first)
    assert ran.returncode == 2
    assert "is signed" in ran.stderr
