"""What others wrote and the composer reads: any of it is taken or refused, in time, in little memory, and
nothing is opened, written or started that it has no business with.

The recipe and the disk's header have experiments of their own (hostile.py).
"""

from __future__ import annotations

import base64
import copy
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from composer.compose.build import deployments_of, room_of
from composer.compose.inspect import describe
from composer.compose.update import known_disk
from composer.compose.verify import _read_boot
from composer.deadline import Deadline
from composer.disk.manifest import Manifest, manifest_path
from composer.errors import ComposerError
from composer.events import Reporter, Tape
from composer.helper.job import Job, run_job
from composer.helper.shell import Answer
from composer.repo.download import Downloads
from composer.repo.upstream import Tls, Upstream
from tests.faults.experiment import Experiment, Trial
from tests.faults.hostile import Watch
from tests.vm.ground import Ground
from tests.web import served

_SECONDS = 2.0
_BYTES = 256 * 2**20
_COMMIT = "1" * 64
_STEPS = ("mount-sysroot", "pull", "deploy", "report")
# What somebody may put where a path, a name, a number or a text is expected.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, 1e999, -0.0, "", " ", ".", "..", "/",
    "../../../../../../tmp/evil", "/etc/passwd", "/proc/self/environ", "/dev/zero", "-rf", "--repo=/", "a\0b",
    "a\nb", "\x1b[2J", "é" * 300, "x" * 5000, "\ud800", "/../../" + "a" * 57, "0" * 64, "g" * 64, "1" * 63,
    "file:///etc", "https://me:pw@127.0.0.1/", "http://[::1", "json:{}", [], {}, [[]], {"": None},
    ["a"] * 1000, "{{ 7 * 7 }}", "$(touch pwned)", "%s%n", "nan", "18446744073709551616",
)  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """Return JSON data with one to three of its places changed: replaced, removed, doubled, renamed."""
    whole = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 2, 3))):
        above, key = chance.choice(list(_places(whole)) or [(None, None)])
        if above is None:
            continue
        kind = chance.randrange(10)
        if kind == 0:
            del above[key]
        elif kind == 1 and isinstance(above, list):
            above.extend(above[:] * chance.choice((1, 200)))
        elif kind == 1:
            above[chance.choice(("surprise", "__class__", "", "../x"))] = above[key]
        elif kind == 2 and isinstance(above[key], str):
            above[key] = _cut(above[key], chance)
        else:
            above[key] = copy.deepcopy(chance.choice(_VALUES))
    return whole


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _cut(text: str, chance: random.Random) -> str:
    place = chance.randrange(len(text) + 1)
    return text[:place] + chance.choice(("", "/", "..", "\n", "\0", "\x9b", "ü", text)) + text[place + 1 :]


def spoiled(raw: bytes, chance: random.Random) -> bytes:
    """Return bytes with some changed, inserted or cut off."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            del data[place : place + chance.randrange(40)]
        elif kind == 1:
            data[place:place] = chance.choice((b"\0", b"\xff", b"[" * 5000, b'"', b"\n", b"9" * 500, b"{}"))
        elif kind == 2:
            data[place : place + 4] = chance.randbytes(4)
        else:
            data[place:place] = data[: chance.randrange(100)]
    return bytes(data)


@contextmanager
def bounded(seconds: float = _SECONDS) -> Iterator[None]:
    """Have the block take less than so many seconds, and raise nothing but the composer's own errors."""
    began = time.monotonic()
    with suppress(ComposerError):
        yield
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.1f} s"


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process have so much more memory for the block, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def watched(watch: Watch, *folders: Path) -> Iterator[None]:
    """Have the block open nothing outside some folders, and start nothing."""
    refused: ComposerError | None = None
    with watch.watching():
        try:
            yield
        except ComposerError as error:
            refused = error
    allowed = [str(folder) for folder in folders]
    # A name without a folder is one below a descriptor, which was opened before it.
    opened = [path for path in watch.opened if "/" in path or path == ".."]
    foreign = [path for path in opened if not path.startswith((*allowed, "/proc/self/fd/", "/usr/"))]
    assert foreign == [], foreign
    assert watch.started == [], watch.started
    if refused is not None:
        raise refused


def _sound_manifest(folder: Path) -> dict[str, Any]:
    deed = {"time": "2026-11-29T00:00:00Z", "what": "build", "commit": _COMMIT, "seconds": 1.5, "bytes": 9}
    return Manifest.model_validate(
        {
            "name": "demo", "recipe": f"{folder}/demo.toml", "plan": "2" * 64, "repo": str(folder / "repo"),
            "ref": "os/good", "stateroot": "demo", "remote": "origin", "keep": 2, "firmware": "bios+uefi",
            "keys": {"gpg": [base64.b64encode(b"x" * 40).decode()], "ed25519": ["A" * 43 + "="]},
            "tls": {"certificate": f"{folder}/a.pem"}, "partitions": {"bios": 1, "esp": 2, "root": 3},
            "helper": {"ref": "os/good", "commit": _COMMIT, "memory": 2**30, "cpus": 2},
            "deployments": [{"commit": _COMMIT, "serial": 0, "stateroot": "demo",
                             "refspec": "origin:os/good", "version": "7.1"}],
            "disk": {"size": 1, "mtime_ns": 1}, "root": {"size": 9, "free": 1}, "inode": 5, "history": [deed],
        }
    ).model_dump()  # fmt: skip


class _Nowhere:
    """An upstream that has whatever it is asked for, and notes where that was put."""

    def __init__(self) -> None:
        self.put: list[Path] = []

    def download(self, _path: str, target: Path, _largest: int) -> bool:
        self.put.append(target.resolve().parent / target.name)
        target.write_bytes(b"x")
        return True


@contextmanager
def manifests(ground: Ground) -> Iterator[Trial]:
    """Manifests, and what is made of their fields before a VM starts: no path leads outside."""
    folder = ground.place.folder / "manifests"
    folder.mkdir()
    disk, watch = folder / "disk.qcow2", Watch()
    disk.write_bytes(_disk_header())
    sound = _sound_manifest(folder)

    def trial(chance: random.Random) -> None:
        raw = json.dumps(mutated(sound, chance)).encode("utf-8", "surrogatepass")
        manifest_path(disk).write_bytes(spoiled(raw, chance) if chance.random() < 0.2 else raw)
        with bounded(), little_memory(), watched(watch, folder):
            describe(disk)
            _fetched(known_disk(disk), folder)

    def _fetched(manifest: Manifest, home: Path) -> None:
        with tempfile.TemporaryDirectory(dir=home) as name:
            nowhere = _Nowhere()
            downloads = Downloads(nowhere, Path(name))  # type: ignore[arg-type]
            commits = {manifest.helper.commit, *(found.commit for found in manifest.deployments)}
            paths = [f"objects/{commit[:2]}/{commit[2:]}.commit" for commit in commits]
            for path in (*paths, *(f"refs/heads/{ref}" for ref in (manifest.ref, manifest.helper.ref))):
                with suppress(ComposerError):
                    downloads(path)
            assert all(path.is_relative_to(name) for path in nowhere.put), nowhere.put

    manifest_path(disk).write_text(json.dumps(sound))
    _fetched(known_disk(disk), folder)
    yield trial


def _disk_header() -> bytes:
    """Return an empty qcow2 image of version 3, as far as a reader of headers looks."""
    fields = [(0x514649FB, 4), (3, 4), (0, 8), (0, 4), (16, 4), (2**23, 8), (0, 4), (1, 4), (0x30000, 8),
              (0x10000, 8), (1, 4), (0, 4), (0, 8), (0, 8), (0, 8), (0, 8), (4, 4), (104, 4)]  # fmt: skip
    return b"".join(value.to_bytes(size, "big") for value, size in fields).ljust(2**16, b"\0")


class _Recorded:
    """Plays what a guest wrote, in pieces."""

    def __init__(self, stdout: bytes, piece: int) -> None:
        self._stdout, self._piece = stdout, piece

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
        silence: float | None = None,
    ) -> Answer:
        for start in range(0, len(self._stdout), self._piece):
            if on_stdout is not None:
                on_stdout(self._stdout[start : start + self._piece])
        return Answer(0, b"", b"")


def _events(chance: random.Random) -> bytes:
    """Return what a guest may write of a job: sound lines, spoiled ones, many, in any order."""
    values = [["deployment", f"{_COMMIT} 0 demo origin:os/good 7.1"], ["kargs", "quiet"], ["root-used", "5"],
              ["root-free", "7"], ["remote", "origin https://example.org"]]  # fmt: skip
    lines: list[Any] = []
    for step in _STEPS:
        lines += [{"event": "start", "step": step}, {"event": "end", "step": step, "ms": 5}]
    lines.append({"event": "result", "values": values})
    if chance.random() < 0.2:
        lines.insert(
            chance.randrange(len(lines)), {"event": "failed", "step": "pull", "why": "x", "log": "y"}
        )
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(lines))
        lines[place] = mutated(lines[place], chance)
    if chance.random() < 0.1:
        lines *= 300
    raw = b"".join(json.dumps(line).encode("utf-8", "surrogatepass") + b"\n" for line in lines)
    return spoiled(raw, chance) if chance.random() < 0.3 else raw


def answers(ground: Ground) -> AbstractContextManager[Trial]:
    """A guest's answer to a job, and all that is made of it."""
    return _reading(ground, _read_answer)


def _read_answer(chance: random.Random, _folder: Path) -> Callable[[], None]:
    tape = Tape()
    shell = _Recorded(_events(chance), chance.choice((1, 7, 4096, 2**16)))

    def read() -> None:
        try:
            result = run_job(shell, Job(_STEPS, {}), Reporter(tape), Deadline.after(_SECONDS))
            deployments_of(result)
            room_of(result)
        finally:
            assert len(tape.events) <= 2 * len(_STEPS)

    return read


_DEPLOYMENT = f"{_COMMIT} 0 demo origin:os/good 7.1"
_BOOTED = (
    b"begin", b"state running", b"booted yes", b"firmware bios", b"uptime 12.5", b"failed a.service",
    b"target multi-user.target active", f"deployment /x/{_COMMIT}.0".encode(), b"end",
)  # fmt: skip


def reports(ground: Ground) -> AbstractContextManager[Trial]:
    """Boot entries and deployments as `report` gives them, and what a booted product says of itself."""
    return _reading(ground, _read_report)


def _read_report(chance: random.Random, folder: Path) -> Callable[[], None]:
    line = _DEPLOYMENT
    for _ in range(chance.randrange(1, 4)):
        line = _cut(line, chance)
    values = [
        ["deployment", line],
        ["root-used", chance.choice(_VALUES)],
        ["root-free", str(chance.choice(_VALUES))],
    ]
    said = json.dumps({"event": "result", "values": values}).encode("utf-8", "surrogatepass") + b"\n"
    booted = b"".join(b"composer-verify " + spoiled(entry, chance) + b"\n" for entry in _BOOTED)
    (folder / "report").write_bytes(booted)

    def read() -> None:
        _read_boot(folder / "report").faults(_COMMIT, "bios")
        result = run_job(_Recorded(said, 4096), Job(_STEPS, {}), Reporter(Tape()), Deadline.after(_SECONDS))
        for deployment in deployments_of(result):
            Manifest.model_validate(_sound_manifest(folder) | {"deployments": [deployment.model_dump()]})
        room_of(result)

    return read


@contextmanager
def _reading(
    ground: Ground, prepared: Callable[[random.Random, Path], Callable[[], None]]
) -> Iterator[Trial]:
    """Trials that read what was prepared for them, in memory or in a folder of their own."""
    folder = Path(tempfile.mkdtemp(dir=ground.place.folder))
    watch = Watch()

    def trial(chance: random.Random) -> None:
        read = prepared(chance, folder)
        with bounded(), little_memory(), watched(watch, folder, _bootstrap_files()):
            read()

    yield trial


def _bootstrap_files() -> Path:
    """Return the checkout, in which the guest's steps lie."""
    return Path(__file__).resolve().parents[2]


class _Odd(BaseHTTPRequestHandler):
    """Answers as it was told, byte for byte."""

    raw = b""

    def handle(self) -> None:
        with suppress(OSError):
            self.connection.settimeout(1)
            self.connection.recv(65536)
            self.connection.sendall(self.raw)


_HEADERS = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999", "Content-Length: 5, 6",
    "Content-Length: ٣", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Content-Encoding: br",
    "Content-Range: bytes 0-4/5", "Location: /else", "Location: file:///etc/passwd", "Location: //", ": x",
    "Retry-After: 3600", "Connection: close", "Set-Cookie: a=b", "X: " + "y" * 70000, "a\0b: c",
)  # fmt: skip
_STATUSES = (
    "200 OK",
    "206 Partial",
    "404 None",
    "416 Range",
    "301 Moved",
    "304 Same",
    "200",
    "099 x",
    "999 x",
    "x",
)
_BODIES = (
    b"hello", b"", b"[core]\nmode=archive-z2\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffff\r\n",
    b"-5\r\n", b"\x1f\x8b" + bytes(20), bytes(100_000),
)  # fmt: skip


def _odd_answer(chance: random.Random) -> bytes:
    version = chance.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9", "ICY"))
    heads = [*chance.sample(_HEADERS, chance.randrange(4)), "Connection: close"]
    head = f"{version} {chance.choice(_STATUSES)}\r\n" + "".join(f"{line}\r\n" for line in heads) + "\r\n"
    raw = head.encode("utf-8") + chance.choice(_BODIES)
    return spoiled(raw, chance) if chance.random() < 0.2 else raw


@contextmanager
def upstreams(ground: Ground) -> Iterator[Trial]:
    """A server's answers: a small file, a download, its size bounded, in time."""
    folder = ground.place.folder / "upstreams"
    folder.mkdir()
    path = f"objects/11/{'1' * 62}.commit"
    handler = type("_Told", (_Odd,), {})
    with served(handler) as url:

        def trial(chance: random.Random) -> None:
            handler.raw = _odd_answer(chance)  # type: ignore[attr-defined]
            upstream = Upstream(url, Tls(), Deadline.after(0.4))
            with bounded(_SECONDS):
                upstream.text("config")
            with bounded(_SECONDS):
                target = folder / "got"
                if upstream.download(path, target, 50_000):
                    assert target.stat().st_size <= 50_000
            upstream.close()
            (folder / "got").unlink(missing_ok=True)
            assert list(folder.iterdir()) == []

        yield trial


EXPERIMENTS = (
    Experiment("hostile-manifest", 100, 1000, 10_000, manifests),
    Experiment("hostile-answers", 100, 1000, 10_000, answers),
    Experiment("hostile-report", 100, 1000, 10_000, reports),
    Experiment("hostile-upstream", 100, 500, 10_000, upstreams),
)
