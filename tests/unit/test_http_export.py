"""The export over HTTP: a repo's files for whoever has the token, and nothing else for anybody."""

from __future__ import annotations

import base64
import http.client
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from composer.errors import ComposerError
from composer.export.http import HttpExport, http_export

SECRET = b"a secret of the host"
PLAIN = b"what a plain file holds"
CONFIG = b"[core]\nrepo_version=1\nmode=archive-z2\n"


@pytest.fixture(scope="module")
def repo(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tiny repo and put into it what must not be served."""
    home = tmp_path_factory.mktemp("export")
    copy = home / "repo"
    shutil.copytree(tiny_repo, copy, symlinks=True)
    with (copy / "config").open("a") as config:
        config.write(f'[remote "origin"]\nurl=https://user:{SECRET.decode()}@example.org/\n')
    outside = home / "outside"
    outside.mkdir()
    (outside / "inner").write_bytes(SECRET)
    (copy / "refs/heads/linked").symlink_to(outside / "inner")
    (copy / "refs/heads/linked-folder").symlink_to(outside)
    (copy / "refs/heads/plain").write_bytes(PLAIN)
    (copy / "refs/heads/.hidden").write_bytes(SECRET)
    os.mkfifo(copy / "refs/heads/fifo")
    (copy / "summary").symlink_to(outside / "inner")
    (copy / "extra").write_bytes(SECRET)
    return copy


@pytest.fixture(scope="module")
def export(repo: Path) -> Iterator[HttpExport]:
    with http_export(repo) as running:
        yield running


def connect(export: HttpExport) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", export.port, timeout=5)


def get(export: HttpExport, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask for a path below the token."""
    with closing(connect(export)) as connection:
        connection.request(method, f"/{export.token}/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read()


def raw(export: HttpExport, request: bytes) -> bytes:
    """Send bytes and return all that comes until the other side closes or is silent."""
    got = b""
    with closing(socket.create_connection(("127.0.0.1", export.port), timeout=5)) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            got += chunk
    return got


def some_object(repo: Path) -> str:
    return str(next((repo / "objects").glob("*/*.filez")).relative_to(repo))


def test_serves_refs_and_objects(repo: Path) -> None:
    with http_export(repo) as export:
        for path in ("refs/heads/os/good", some_object(repo)):
            assert get(export, path) == (200, (repo / path).read_bytes())
        assert get(export, "refs/heads/os/good", "HEAD") == (200, b"")
        assert get(export, "refs/heads/none") == (404, b"")
    assert export.served.files == 2
    assert export.served.bytes == 65 + (repo / some_object(repo)).stat().st_size


def test_ostree_pulls_from_it(export: HttpExport, tmp_path: Path) -> None:
    mine = f"--repo={tmp_path}/mine"
    for argv in (
        ["init", "--mode=bare-user"],
        ["remote", "add", "--no-gpg-verify", "o", export.url],
        ["pull", "o", "os/good"],
        ["fsck", "--quiet"],
    ):
        subprocess.run(["ostree", mine, *argv], check=True, stdout=subprocess.DEVNULL)
    read = subprocess.run(
        ["ostree", mine, "cat", "o:os/good", "/usr/bin/sh"], check=True, stdout=subprocess.PIPE
    )
    assert read.stdout == b"this is usr/bin/sh\n"


def test_a_connection_may_come_by_another_way(export: HttpExport) -> None:
    """As those that a helper makes do: they come out of its shell."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    with ours:
        export.serve(theirs)
        ours.settimeout(5)
        path = export.url_at(1234).removeprefix("http://127.0.0.1:1234")
        ours.sendall(f"GET {path}/config HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while chunk := ours.recv(65536):
            got += chunk
    assert got.endswith(CONFIG)
    assert len(export.token) >= 32


def test_what_is_fetched_on_demand(repo: Path, tmp_path: Path) -> None:
    """The folder of a remote repo begins empty; what cannot be fetched is the other side's fault."""

    def fill(path: str) -> None:
        if path == "refs/heads/broken":
            raise ComposerError("it breaks off")
        if path.startswith("refs/heads/os/"):
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((repo / path).read_bytes())

    with http_export(tmp_path, fill) as export:
        assert get(export, "refs/heads/os/good") == (200, (repo / "refs/heads/os/good").read_bytes())
        assert get(export, "refs/heads/none") == (404, b"")
        assert get(export, "refs/heads/broken") == (502, b"")
        assert get(export, "refs/heads/../../../etc/passwd") == (404, b"")


def test_each_export_has_its_own_token(repo: Path, export: HttpExport) -> None:
    with http_export(repo) as other:
        assert other.token != export.token


@pytest.mark.parametrize("path", ["/", "", "/x/config", "/config", "/refs/heads/os/good", "//config", "*"])
def test_without_the_token(export: HttpExport, path: str) -> None:
    assert raw(export, f"GET {path or '/'} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).startswith(b"HTTP/1.1 403 ")


def test_almost_the_token(export: HttpExport) -> None:
    for token in (
        export.token[:-1],
        export.token + "x",
        export.token.swapcase(),
        export.token[:-1] + "\u00e9",
    ):
        answer = raw(export, f"GET /{token}/config HTTP/1.1\r\n\r\n".encode("latin-1"))
        assert answer.startswith(b"HTTP/1.1 403 ")


def test_config_is_not_the_repos_own(export: HttpExport) -> None:
    assert get(export, "config") == (200, CONFIG)


@pytest.mark.parametrize(
    "path",
    [
        "extra", "refs/heads/linked", "refs/heads/linked-folder/inner", "summary", "refs/heads/fifo",
        "refs/heads/os",
        "refs/heads/.hidden", "refs/heads/../../extra", "refs/heads/%2e%2e/%2e%2e/extra",
        "refs/heads/..%2f..%2fextra",
        "refs/heads//plain", "/refs/heads/plain", "./refs/heads/plain", "refs/heads/plain/",
        "refs/heads/plain?x",
        "refs/heads/plain#x", "refs/heads/plain%00", "refs/heads/pl%61in", "objects", "objects/../config",
        "objects/00/" + "0" * 62 + ".filez", "objects/00/../../config", "config/", "CONFIG", "",
        "refs/../refs/heads/plain", "refs/heads/plain\\..\\x", ".lock", "tmp/cache", "refs/heads/none",
    ],
)  # fmt: skip
def test_not_there(export: HttpExport, path: str) -> None:
    answer = raw(export, f"GET /{export.token}/{path} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert SECRET not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND", "CONNECT"])
def test_read_only(repo: Path, export: HttpExport, method: str) -> None:
    status, _ = get(export, "refs/heads/plain", method)
    assert status in (405, 501)
    assert (repo / "refs/heads/plain").read_bytes() == PLAIN


def test_two_requests_on_one_connection(repo: Path, export: HttpExport) -> None:
    with closing(connect(export)) as connection:
        for path, status in (("refs/heads/os/good", 200), ("nothing", 404), ("config", 200), ("config", 200)):
            connection.request("GET", f"/{export.token}/{path}")
            answer = connection.getresponse()
            assert answer.status == status
            answer.read()


def test_many_at_once(repo: Path, export: HttpExport) -> None:
    wanted = (repo / some_object(repo)).read_bytes()
    gate = threading.Barrier(32)

    def fetch(_: int) -> tuple[int, bytes]:
        gate.wait(5)
        return get(export, some_object(repo))

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(fetch, range(32))) == [(200, wanted)] * 32


def test_listens_on_loopback_alone(export: HttpExport) -> None:
    listening = [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == export.port
    ]
    assert listening == [f"0100007F:{export.port:04X}"]


def test_nothing_listens_afterwards(repo: Path) -> None:
    with http_export(repo) as export:
        pass
    with pytest.raises(ConnectionRefusedError):
        connect(export).connect()


def test_a_kept_connection_ends_with_the_export(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "refs/heads").mkdir(parents=True)
    (other / "refs/heads/plain").write_bytes(b"of another folder")
    with http_export(repo) as export:
        connection = connect(export)
        connection.request("GET", f"/{export.token}/config")
        connection.getresponse().read()
    opened = [os.open(other, os.O_PATH) for _ in range(8)]
    try:
        connection.request("GET", f"/{export.token}/refs/heads/plain")
        assert connection.getresponse().status != 200
    except (http.client.HTTPException, OSError):
        pass
    finally:
        connection.close()
        for descriptor in opened:
            os.close(descriptor)


def hostile_requests(token: str, count: int) -> Iterator[bytes]:
    """Yield requests made of what servers have stumbled over."""
    dice = random.Random(20)
    pieces = [
        "..", ".", "", "%2e%2e", "%2e", "..%2f", "%2f", "%5c", "\\", "..;", "%00", "\x01",
        "refs", "heads", "plain", "linked", "linked-folder", "inner", "fifo", "objects", "config", "config.",
        "summary", "extra", "~", "*", "?",
        "#", "%c0%ae%c0%ae", "\xff", "a" * 3000, "etc", "passwd", "state", "tmp", "deltas", "00", "os", token,
    ]  # fmt: skip
    methods = ["GET", "GET", "GET", "HEAD", "get", "POST", "TRACE", "OPTIONS", "\x00", "G" * 70000]
    versions = ["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "", "HTTP/2.0", "HTTP/9.9.9", "HTTP/x", "ICY"]
    heads = [
        "", "Range: bytes=0-99999999\r\n", "Content-Length: -1\r\n",
        "Content-Length: 99999999999\r\n",
        "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", "X: " + "y" * 70000 + "\r\n",
        "Host: " + base64.b64encode(dice.randbytes(40)).decode() + "\r\n", "a: b\r\n" * 200, ": \r\n",
        "\x00\r\n",
    ]  # fmt: skip
    for _ in range(count):
        prefix = dice.choice(
            [f"/{token}/", f"/{token}/", f"//{token}/", f"http://x/{token}/", f"/{token}", "/"]
        )
        path = prefix + "/".join(dice.choices(pieces, k=dice.randint(1, 7)))
        request = f"{dice.choice(methods)} {path} {dice.choice(versions)}\r\n{dice.choice(heads)}\r\n"
        yield request.encode("latin-1") + dice.choice([b"", dice.randbytes(30)])


def test_hostile_requests(repo: Path, export: HttpExport) -> None:
    allowed = {CONFIG, PLAIN, b""}
    for request in hostile_requests(export.token, 150):
        try:
            answer = raw(export, request)
        except OSError:
            continue
        assert SECRET not in answer, request
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200"):
            length = int(head.rpartition(b"Content-Length: ")[2])
            assert body[:length] in allowed, request
    assert get(export, "refs/heads/os/good")[0] == 200


def test_connections_that_stall_take_no_thread_for_ever(repo: Path) -> None:
    """Of three hundred that say half a request, the oldest give way; a client that asks is answered."""
    with http_export(repo) as running, ExitStack() as stack:
        before = threading.active_count()
        for _ in range(300):
            stalled = stack.enter_context(
                closing(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            )
            stalled.sendall(f"GET /{running.token}/obj".encode())
        assert get(running, "config") == (200, CONFIG)
        began = time.monotonic()
        while threading.active_count() - before > 65:
            assert time.monotonic() - began < 5, threading.active_count() - before
            time.sleep(0.02)
