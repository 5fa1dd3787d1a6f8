"""Hostile disk headers and hostile recipes: refused at once, and nothing is opened or run on their behalf."""

from __future__ import annotations

import json
import random
import re
import resource
import string
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from composer.compose import steps
from composer.disk import image, qcow2
from composer.disk.qcow2 import check_chain
from composer.errors import BadInput
from composer.plan import Account, ProductFile
from composer.recipe.hostfiles import host_path
from composer.recipe.load import LoadedRecipe, load_recipe
from tests.faults.experiment import Experiment, Trial
from tests.vm.ground import Ground

_SECONDS = 1.0
_BYTES = 256 * 2**20
_NAMES = (
    b"/etc/passwd", b"../../../etc/passwd", b"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
    b"nbd://127.0.0.1:10809", b"nbd:unix:/run/x", b"http://127.0.0.1/x", b"ssh://root@host/disk", b"fat:/etc",
    b"\0/etc/passwd", b"base\xff.qcow2", b"secret.qcow2", b"", b"/dev/zero", b"/proc/self/mem", b"fifo", b".",
    b"disk.qcow2", b"link.qcow2", b"a" * 1023, b"a" * 1024, b"base.qcow2", b"base.qcow2", b"./base.qcow2",
    b"../trap/base.qcow2", b"inner/base.qcow2", b"inner/../base.qcow2", b"via/base.qcow2", b"/base.qcow2",
    b"inner/out/base.qcow2", b"outer.qcow2", b"../elsewhere/base.qcow2",
)  # fmt: skip


# Of version 3's incompatible features, those that QEMU has and that name no other file; header extensions.
_DIRTY, _COMPRESSED, _EXTENDED = 1 << 0, 1 << 3, 1 << 4
_DATA_FILE = 0x44415441
# Without the limit on memory that holds for us.
_UNLIMITED = ("prlimit", "--as=unlimited")
_STARTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "ctypes.dlopen",
    "socket.connect", "socket.getaddrinfo",
)  # fmt: skip


class Watch:
    """Notes what is opened and what is started; Python tells it of both (sys.addaudithook)."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.started: list[str] = []
        self.on = False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self.opened.append(str(arguments[0]))
        elif event in _STARTS:
            self.started.append(event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.opened.clear()
        self.started.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False


def header(chance: random.Random) -> bytes:
    """Return a qcow2 header that is sound but for some of its fields."""
    wild = (0, 1, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1, chance.randrange(2**64), chance.randrange(4096))

    def field(sound: int, bits: int, odds: float = 0.15) -> int:
        return chance.choice(wild) % 2**bits if chance.random() < odds else sound

    name = chance.choice(_NAMES) if chance.random() < 0.6 else b""
    extensions = b""
    if chance.random() < 0.7:
        extensions += struct.pack(">II", 0xE2792ACA, field(5, 32)) + b"qcow2\0\0\0"
    if chance.random() < 0.2:
        extensions += struct.pack(">II", 0x44415441, field(8, 32)) + b"/etc/pas"
    extensions += struct.pack(">II", 0, 0)
    place = 104 + len(extensions)
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb" if chance.random() < 0.95 else chance.randbytes(4),
        field(3, 32), field(place if name else 0, 64), field(len(name), 32), field(16, 32), field(2**30, 64),
        field(0, 32), field(2, 32), field(0x30000, 64), field(0x10000, 64), field(1, 32), field(0, 32),
        field(0, 64),
    )  # fmt: skip
    more = struct.pack(
        ">QQQII",
        chance.choice((0, 0, 0, 1, 2, 4, 8, 16, 32, 2**40)),
        field(0, 64),
        field(0, 64),
        field(4, 32),
        field(104, 32),
    )
    whole = head + more + extensions + name
    if chance.random() < 0.15:
        whole = whole[: chance.randrange(len(whole))]
    return whole + bytes(chance.choice((0, 1, 512, 65536)))


def _empty() -> bytes:
    """Return an empty qcow2 image as QEMU makes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        return path.read_bytes()


@dataclass(frozen=True)
class Trap:
    """A folder with a disk whose header is hostile, and things that it may name; another has a secret.

    A third has a link to the disk, and files of the names that the disk may give to its base.
    """

    folder: Path
    watch: Watch

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def ways(self) -> tuple[Path, ...]:
        """The paths that lead to the disk: its own, one through a linked folder, and a link to it."""
        elsewhere = self.folder.with_name("elsewhere")
        return self.disk, elsewhere / "folder" / "disk.qcow2", elsewhere / "disk.qcow2"

    def examine(self, raw: bytes, way: Path | None = None) -> bool:
        """Have the gate look at a header, and return whether it lets it pass.

        It may open files of the folder, in their turn, and no others; and what passes must be harmless.
        """
        self.disk.write_bytes(raw)
        accepted = False
        began = time.monotonic()
        with self.watch.watching(), suppress(BadInput):
            check_chain(way or self.disk)
            accepted = True
        assert time.monotonic() - began < _SECONDS, raw.hex()
        foreign = [path for path in self.watch.opened if Path(path).resolve().parent != self.folder]
        assert foreign == [], (foreign, raw.hex())
        assert self.watch.started == [], raw.hex()
        assert not accepted or is_harmless(raw), raw.hex()
        return accepted

    def opened_by_qemu(self, way: Path) -> set[str]:
        """Return the files that qemu-img opens when it is given the disk as we do, as the kernel sees it."""
        log = self.folder.with_name("trap.strace")
        argv = [*_UNLIMITED, "strace", "-f", "-qq", "-o", str(log), "-e", "trace=open,openat,connect"]
        argv += ["qemu-img", "map", "-f", "qcow2", image.node(way, check_chain(way).bases)]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)
        told = log.read_text(errors="replace")
        assert "connect(" not in told, told
        return {path for path in re.findall(r'open(?:at)?\(.*?"([^"]+)".* = [0-9]+$', told, re.MULTILINE)
                if not path.startswith(("/proc/", "/sys/"))}  # fmt: skip


def is_harmless(raw: bytes) -> bool:
    """Whether a header asks for nothing but its own file and one beside it, of a size that a disk may have.

    By docs/interop/qcow2.txt, and apart from the gate's own code: it is what the gate is held against.
    """
    version, offset, length, _, size, crypt, l1_size = struct.unpack_from(">IQIIQII", raw, 4)
    features, header_length = struct.unpack_from(">Q20xI", raw, 72) if version == 3 else (0, 72)
    name = raw[offset : offset + length] if offset else b""
    place, kinds = header_length, []
    while place + 8 <= len(raw):
        kind, taken = struct.unpack_from(">II", raw, place)
        if kind == 0:
            break
        kinds.append(kind)
        place += 8 + -(-taken // 8) * 8
    return (
        raw[:4] == b"QFI\xfb"
        and crypt == 0
        and features & ~(_DIRTY | _COMPRESSED | _EXTENDED) == 0
        and _DATA_FILE not in kinds
        and size <= 2**46
        and l1_size <= 2**22
        and b":" not in name.partition(b"/")[0]
        and b"\0" not in name
    )


@contextmanager
def _trap(ground: Ground) -> Iterator[Trap]:
    folder = ground.place.folder / "trap"
    folder.mkdir(exist_ok=True)
    outside = ground.place.folder / "secret.qcow2"
    outside.write_bytes(header(random.Random(0)))
    elsewhere = ground.place.folder / "elsewhere"
    (folder / "inner").mkdir(exist_ok=True)
    elsewhere.mkdir(exist_ok=True)
    for place in (folder, folder / "inner", elsewhere):
        (place / "base.qcow2").write_bytes(_empty())
    links: dict[Path, Path | str] = {
        folder / "link.qcow2": outside, folder / "via": ".", folder / "inner/out": elsewhere,
        folder / "outer.qcow2": "../elsewhere/base.qcow2", elsewhere / "folder": folder,
        elsewhere / "disk.qcow2": folder / "disk.qcow2",
    }  # fmt: skip
    for link, target in links.items():
        with suppress(FileExistsError):
            link.symlink_to(target)
    # Memory is limited for the block: a header must not make us ask for a table of its size.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, hard))
    try:
        yield Trap(folder.resolve(), Watch())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def headers(ground: Ground) -> Iterator[Trial]:
    """Headers with wild fields and names; what passes is given to QEMU, under the eyes of strace."""
    with _trap(ground) as trap:
        trap.disk.write_bytes(_empty())
        usual = trap.opened_by_qemu(trap.disk)
        assert str(trap.disk) in usual

        def trial(chance: random.Random) -> None:
            raw, way = header(chance), chance.choice(trap.ways)
            if trap.examine(raw, way):
                checked = {path.resolve() for path in (way, *check_chain(way).bases)}
                foreign = {path for path in trap.opened_by_qemu(way) - usual
                           if Path(path).resolve() not in checked}  # fmt: skip
                assert foreign == set(), (foreign, raw.hex())

        yield trial


def _lines_reached(call: Callable[[], object]) -> frozenset[tuple[int, int]]:
    """Return the pairs of lines of the gate that a call goes through, one after the other."""
    reached: set[tuple[int, int]] = set()
    last = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal last
        if frame.f_code.co_filename != qcow2.__file__:
            return None
        if event == "line":
            reached.add((last, frame.f_lineno))
            last = frame.f_lineno
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(former)
    return frozenset(reached)


@contextmanager
def fuzz(ground: Ground) -> Iterator[Trial]:
    """Coverage-guided: what reaches new lines of the gate is bred from."""
    with _trap(ground) as trap:
        corpus: list[bytes] = [header(random.Random(seed)) for seed in range(8)]
        reached: set[tuple[int, int]] = set()

        def trial(chance: random.Random) -> None:
            for _ in range(50):
                raw = bytearray(chance.choice(corpus))
                for _ in range(chance.randrange(1, 6)):
                    _mutate(raw, chance)
                lines = _lines_reached(partial(trap.examine, bytes(raw)))
                if lines - reached:
                    reached.update(lines)
                    corpus.append(bytes(raw))

        yield trial


def _mutate(raw: bytearray, chance: random.Random) -> None:
    if not raw:
        raw += b"QFI\xfb"
    place = chance.randrange(min(len(raw), 200))
    kind = chance.randrange(4)
    if kind == 0:
        raw[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        raw[place : place + 4] = struct.pack(">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 104, 72)))
    elif kind == 2:
        raw[place:place] = chance.choice(_NAMES)
    else:
        del raw[place : place + chance.randrange(1, 16)]


_NASTY = (
    "$(touch pwned)", "`touch pwned`", "; touch pwned", "| touch pwned", "&& touch pwned", "'\"\\", "\n",
    "\r\n", "\t", "\0", "\x1b[31m", "{{ 7*7 }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}", "{{ date }}", "{{ v }}", "{{ 'x' | upper }}",
    "{{ 'a' * 10**10 }}", "{{ undefined_name }}", "../../etc/passwd",
    "/",
    "-rf", "--help", "%s%n", "日本", "😀", "é", "\u202e", "é" * 300, "a" * 5000, "*?[]", "~root", "$HOME",
    "<&>", "]]>", "<!ENTITY x SYSTEM 'file:///etc/passwd'>", "file:///etc/passwd", "http://127.0.0.1:1/", " ",
)  # fmt: skip


def _nasty(chance: random.Random) -> str:
    """Return text that somebody may hope to be run, or to be read as something else than text."""
    parts = [chance.choice(_NASTY) for _ in range(chance.randrange(1, 3))]
    if chance.random() < 0.3:
        parts.append("".join(chance.choice(string.printable) for _ in range(chance.randrange(20))))
    if chance.random() < 0.2:
        parts.append("".join(chr(chance.randrange(1, 0xD7FF)) for _ in range(chance.randrange(10))))
    chance.shuffle(parts)
    return "".join(parts)


def _toml(text: str) -> str:
    """Return a TOML string; JSON's form is one, with the few escapes that differ."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def hostile_recipe(
    chance: random.Random, keys: tuple[tuple[str, str], ...]
) -> tuple[str, dict[tuple[str, str], str]]:
    """Return a recipe with nasty text in some fields, and what that text is."""
    nasty: dict[tuple[str, str], str] = {}

    def value(section: str, key: str, sound: str) -> str:
        if (section, key) in keys:
            text = _nasty(chance)
            nasty[section, key] = text
            return _toml(text)
        return sound

    said = [
        f'name = {value("", "name", _toml("demo"))}',
        "[variables]", f'v = {value("variables", "v", _toml("hello"))}',
        "[ostree]", f'repo = {value("ostree", "repo", _toml("repo"))}',
        f'ref = {value("ostree", "ref", _toml("some/ref"))}',
        f'stateroot = {value("ostree", "stateroot", _toml("demo"))}',
        f'kargs = [{value("ostree", "kargs", _toml("quiet"))}]',
        "[ostree.remote]", f'name = {value("remote", "name", _toml("origin"))}',
        f'url = {value("remote", "url", _toml("https://example.org/repo"))}',
        "[ostree.verify]", f'gpg_keys = [{value("verify", "gpg_keys", _toml("keys.gpg"))}]',
        f'ed25519_keys = [{value("verify", "ed25519_keys", _toml("A" * 43 + "="))}]',
        "[ostree.tls]", f'certificate = {value("tls", "certificate", _toml("keys.gpg"))}',
        f'key = {value("tls", "key", _toml("keys.gpg"))}', f'ca = {value("tls", "ca", _toml("keys.gpg"))}',
        "[disk]", f'filesystem = {value("disk", "filesystem", _toml("ext4"))}',
        f'firmware = {value("disk", "firmware", _toml("bios+uefi"))}',
        f'size = {value("disk", "size", _toml("4 GiB"))}',
        "[disk.uuids]", f'root = {value("uuids", "root", _toml("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"))}',
        f'esp = {value("uuids", "esp", _toml("1A2B-3C4D"))}',
        "[bootstrap]", f'memory = {value("bootstrap", "memory", _toml("1 GiB"))}',
        f'ref = {value("bootstrap", "ref", _toml("helper/ref"))}',
        "[system]", f'hostname = {value("system", "hostname", _toml("host"))}',
        "[[users]]", f'name = {value("users", "name", _toml("admin"))}',
        f'shell = {value("users", "shell", _toml("/bin/bash"))}',
        f'groups = [{value("users", "groups", _toml("sudo"))}]',
        f'password_hash = {value("users", "password_hash", _toml("$6$a$" + "b" * 86))}',
        f'ssh_keys = [{value("users", "ssh_keys", _toml("ssh-ed25519 " + _KEY + " me"))}]',
        f'ssh_key_files = [{value("users", "ssh_key_files", _toml("key.pub"))}]',
        "[[files]]", 'path = "/etc/source"', f'source = {value("files", "source", _toml("key.pub"))}',
        "[[files]]", f'path = {value("files", "path", _toml("/etc/motd"))}',
        f'content = {value("files", "content", _toml("{{ v }}"))}',
        f'owner = {value("files", "owner", _toml("root"))}',
        f'group = {value("files", "group", _toml("root"))}',
        f'mode = {value("files", "mode", _toml("0644"))}',
        "[output]", f'path = {value("output", "path", _toml("out.qcow2"))}',
        f'format = {value("output", "format", _toml("qcow2"))}',
        f'flatten = {value("output", "flatten", _toml("auto"))}',
    ]  # fmt: skip
    return "\n".join(said) + "\n", nasty


def _odd_end(chance: random.Random) -> str:
    """Return what may follow a recipe: as a rule nothing, else a key that there is not, or a bomb."""
    bombs = ("x = " + "[" * 100_000, "a = {" * 5000, "[" + "a." * 50_000 + "b]", "n = " + "9" * 100_000)
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(bombs) + "\n"
    return f"{_toml(_nasty(chance))} = 1\n" if kind < 0.2 else ""


_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJ0a5ZPqgT1GxmBYHbn0pRr0bkRqLx3pTxkB1hJqCLtA"
# Each key that may hold a text, of each table.
_TEXTS = (
    ("", "name"), ("variables", "v"), ("ostree", "repo"), ("ostree", "ref"), ("ostree", "stateroot"),
    ("ostree", "kargs"), ("remote", "name"), ("remote", "url"), ("verify", "ed25519_keys"), ("disk", "size"),
    ("disk", "filesystem"), ("disk", "firmware"), ("uuids", "root"), ("uuids", "esp"), ("bootstrap", "ref"),
    ("bootstrap", "memory"), ("system", "hostname"), ("users", "name"), ("users", "shell"),
    ("users", "groups"), ("users", "password_hash"), ("users", "ssh_keys"), ("files", "path"),
    ("files", "content"), ("files", "owner"), ("files", "group"), ("files", "mode"), ("output", "path"),
    ("output", "format"), ("output", "flatten"),
)  # fmt: skip
# Those that take nearly any text, so that a recipe with one of them is as a rule taken.
_FREE = (("variables", "v"), ("files", "content"), ("ostree", "repo"), ("output", "path"))
# Those that name files of the host.
_NAMING = (
    ("verify", "gpg_keys"), ("tls", "certificate"), ("tls", "key"), ("tls", "ca"), ("users", "ssh_key_files"),
    ("files", "source"),
)  # fmt: skip


@contextmanager
def recipes(ground: Ground) -> Iterator[Trial]:
    """Recipes with templates, bombs and metacharacters in any field.

    One that names a file may have that very file read, and no other.
    """
    folder = ground.place.folder / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "repo").mkdir(exist_ok=True)
    (folder / "keys.gpg").write_bytes(b"\x98sound enough")
    (folder / "key.pub").write_text(f"ssh-ed25519 {_KEY} me\n")
    watch, path = Watch(), folder / "hostile.toml"

    def trial(chance: random.Random) -> None:
        fields = _FREE if chance.random() < 0.2 else _TEXTS + _NAMING
        keys = tuple(chance.sample(fields, chance.choice((1, 1, 1, 2, min(5, len(fields))))))
        text, nasty = hostile_recipe(chance, keys)
        defines = {"v": _nasty(chance)} if chance.random() < 0.1 else {}
        end = _odd_end(chance)
        path.write_bytes((text + end).encode("utf-8", "surrogatepass"))
        before = {item.name for item in folder.iterdir()}
        began = time.monotonic()
        loaded: LoadedRecipe | None = None
        with watch.watching(), suppress(BadInput):
            loaded = load_recipe(path, defines)
        assert time.monotonic() - began < 5
        assert watch.started == [], watch.started
        assert {item.name for item in folder.iterdir()} == before
        named = _files_named(nasty, defines, folder)
        unnamed = [name for name in watch.opened if name not in named]
        assert set(map(_folder_of, unnamed)) <= {folder, *_library_folders()}, unnamed
        if loaded is not None:
            assert end == ""
            _assert_exact(loaded, nasty, defines)

    path.write_text(hostile_recipe(random.Random(0), ())[0])
    load_recipe(path, {})
    yield trial


def _files_named(nasty: dict[tuple[str, str], str], defines: dict[str, str], folder: Path) -> set[str]:
    # Those templates of `_nasty` that a recipe may have, expanded without the code that is on trial.
    variable = defines.get("v", nasty.get(("variables", "v"), "hello"))
    expanded = {"{{ v }}": variable, "{{ date }}": time.strftime("%Y%m%d"), "{{ 'x' | upper }}": "X"}
    named = set()
    for key in _NAMING:
        with suppress(BadInput, KeyError):
            text = re.sub(r"{{ [^{}]+ }}", lambda found: expanded.get(found[0], found[0]), nasty[key])
            named.add(str(host_path(text, folder)))
    return named


def _folder_of(name: str) -> Path:
    return Path(name).parent


def _library_folders() -> set[Path]:
    """Where Python itself reads: modules that are imported when they are first needed."""
    return {Path(name).parent for module in list(sys.modules.values())
            if (name := getattr(module, "__file__", None)) is not None} | {
                Path(name).parent / "__pycache__" for module in list(sys.modules.values())
                if (name := getattr(module, "__file__", None)) is not None}  # fmt: skip


def _arrived(loaded: LoadedRecipe, key: tuple[str, str]) -> str | None:
    """Return what became of a field, on its way to the guest; None where that is no text."""
    recipe = loaded.recipe
    (user,), (_, file) = recipe.users, recipe.files
    remote, verify = recipe.ostree.remote, recipe.ostree.verify
    account = Account(
        user.name, user.shell, None, tuple(user.groups), user.password_hash, loaded.ssh_keys[user.name]
    )
    product = ProductFile(file.path, loaded.contents[file.path], file.mode, file.owner, file.group)
    data = {("users", name): value for name, value in steps._account_data(account).items()}
    data |= {("files", name): value for name, value in steps._file_data(product).items()}
    data |= {
        ("", "name"): recipe.name.encode(),
        ("ostree", "ref"): recipe.ostree.ref.encode(),
        ("ostree", "kargs"): recipe.ostree.kargs[0].encode(),
        ("bootstrap", "ref"): (recipe.bootstrap.ref or "").encode(),
        ("uuids", "root"): (recipe.disk.uuids.root or "").encode(),
        ("remote", "name"): (remote.name if remote else "").encode(),
        ("ostree", "stateroot"): recipe.ostree.stateroot.encode(),
        ("ostree", "repo"): recipe.ostree.repo.encode(),
        ("system", "hostname"): (recipe.system.hostname or "").encode(),
        ("remote", "url"): (remote.url if remote else "").encode(),
        ("users", "password_hash"): (user.password_hash or "").encode(),
        ("users", "ssh_keys"): loaded.ssh_keys[user.name][0].encode(),
        ("uuids", "esp"): (recipe.disk.uuids.esp or "").encode(),
        ("verify", "ed25519_keys"): "".join(verify.ed25519_keys if verify else ()).encode(),
    }
    return data[key].decode() if key in data else None


def _assert_exact(loaded: LoadedRecipe, nasty: dict[tuple[str, str], str], defines: dict[str, str]) -> None:
    """Assert that a text which was taken and is no template reaches the guest as it was written."""
    for key, text in nasty.items():
        arrived = _arrived(loaded, key)
        if arrived is not None and not any(mark in text for mark in ("{{", "{%", "{#")):
            assert arrived == (text.strip() if key == ("users", "ssh_keys") else text), (key, text, arrived)
    # What a variable stands for is never taken for a template.
    variable = defines.get("v", nasty.get(("variables", "v")))
    if variable is not None and ("files", "content") not in nasty:
        assert loaded.contents[loaded.recipe.files[1].path] == variable.encode(), variable


EXPERIMENTS = (
    Experiment("hostile-header", 100, 200, 10_000, headers),
    Experiment("header-fuzz", 2, 10, 1000, fuzz),
    Experiment("hostile-recipe", 100, 300, 10_000, recipes),
)
