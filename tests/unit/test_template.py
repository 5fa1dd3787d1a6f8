"""Templates without a VM: what makes a new one, which one is refused, and what may be collected."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composer.deadline import Deadline
from composer.errors import DeadlineExpired, HelperDied, ShellFailed, TemplateUnusable
from composer.helper import seed, template
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Domain, Share
from composer.helper.keys import RunKeys
from composer.helper.lease import HelperShape, helper_domain
from composer.helper.machine import Abilities
from composer.helper.seed import Seed
from composer.helper.template import Template, find_template, inputs_of
from composer.store.cache import Cache, Entry, key_of
from composer.store.locks import locked
from composer.store.runs import Run

TCG = Abilities("qemu", "/usr/bin/qemu-system-x86_64", "pc-q35-7.2", "maximum")


class FakeHost:
    """What a template asks of a host."""

    def __init__(self, qemu: str = "7.2.22", libvirt: int = 9_000_000) -> None:
        self._qemu, self._libvirt = qemu, libvirt

    def version(self) -> str:
        return self._qemu

    def libvirt_version(self) -> int:
        return self._libvirt


def domain(shape: HelperShape | None = None, abilities: Abilities = TCG, run: str = "/run/c1") -> Domain:
    image = BootstrapImage(Entry(Path("/cache/b"), "b", {}), fresh=False)
    return helper_domain(image, abilities, shape or HelperShape(2**30, 2), Run(Path(run)))


def inputs(made: Domain, host: FakeHost | None = None, bootstrap: str = "b") -> dict[str, Any]:
    return inputs_of(made, bootstrap, host or FakeHost())  # type: ignore[arg-type]


def test_the_key_is_that_of_the_machine_not_of_the_run() -> None:
    assert inputs(domain()) == inputs(domain(run="/run/another"))


def changes() -> dict[str, dict[str, Any]]:
    kernel = domain().kernel
    assert kernel is not None
    return {
        "bootstrap": inputs(domain(), bootstrap="another"),
        "arguments": inputs(replace(domain(), kernel=replace(kernel, arguments="quiet"))),
        "qemu": inputs(domain(), FakeHost(qemu="8.0.0")),
        "libvirt": inputs(domain(), FakeHost(libvirt=9_000_001)),
        "machine": inputs(domain(abilities=replace(TCG, machine="pc-q35-8.0"))),
        "emulator": inputs(domain(abilities=replace(TCG, emulator="/opt/qemu"))),
        "cpu": inputs(domain(abilities=replace(TCG, cpu_mode="host-passthrough"))),
        "accelerator": inputs(domain(abilities=replace(TCG, kind="kvm"))),
        "memory": inputs(domain(HelperShape(2**29, 2))),
        "cpus": inputs(domain(HelperShape(2**30, 4))),
        "share": inputs(domain(HelperShape(2**30, 2, Share(Path("/shared"), "repo", "9p")))),
        "devices": inputs(replace(domain(), screen=True)),
    }


@pytest.mark.parametrize("part", changes())
def test_a_change_of_any_part_makes_a_new_template(part: str) -> None:
    assert key_of(changes()[part]) != key_of(inputs(domain()))


@pytest.mark.parametrize("part", ["format", "warm-up"])
def test_a_change_of_the_composer_makes_a_new_template(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(inputs(domain()))
    if part == "format":
        monkeypatch.setattr(template, "_FORMAT", 99)
    else:
        monkeypatch.setattr(template, "_warm_up", lambda: b"another")
    assert key_of(inputs(domain())) != before


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return template.cache_of(tmp_path)


def made(cache: Cache, deadline: Deadline, **changed: Any) -> Template:
    """Put a template into the cache, without a machine."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "ram").write_bytes(bytes(8192))
        (folder / "state").write_bytes(b"QEVM and more")
        (folder / "uses").touch()
        return {"sealed": template._seal(folder), "memory": 2**30, "cpus": 2}

    return Template(cache.get({**inputs(domain()), **changed}, make, deadline)[0])


def test_files_are_for_their_owner_alone(cache: Cache, deadline: Deadline) -> None:
    entry = made(cache, deadline).entry
    assert {file.stat().st_mode & 0o777 for file in entry.path.iterdir()} == {0o600}
    assert entry.path.stat().st_mode & 0o777 == 0o700
    assert entry.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_whole_one_is_found_and_counts_its_uses(cache: Cache, deadline: Deadline) -> None:
    made(cache, deadline)
    found = find_template(cache, inputs(domain()))
    found.check()
    assert found.uses == 0
    found.count_use()
    found.count_use()
    assert found.uses == 2


def test_a_missing_and_a_stale_one_are_told_apart(cache: Cache, deadline: Deadline) -> None:
    with pytest.raises(TemplateUnusable, match="no template of it yet"):
        find_template(cache, inputs(domain()))
    made(cache, deadline, devices="of a helper with a shared folder")
    with pytest.raises(TemplateUnusable, match="no template of it yet"):
        find_template(cache, inputs(domain()))
    former = inputs(domain(abilities=replace(TCG, machine="pc-q35-8.0")), FakeHost(qemu="8.0.0"))
    made(cache, deadline, **former)
    with pytest.raises(TemplateUnusable, match="made with another machine, qemu"):
        find_template(cache, inputs(domain()))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Template], object]] = {
    "ram gone": lambda it: it.ram.unlink(),
    "state gone": lambda it: it.state.unlink(),
    "ram cut": lambda it: it.ram.write_bytes(bytes(4096)),
    "state cut": lambda it: it.state.write_bytes(it.state.read_bytes()[:-1]),
    "ram flipped": lambda it: flip(it.ram),
    "state flipped": lambda it: flip(it.state),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_refused(damage: str, cache: Cache, deadline: Deadline) -> None:
    it = made(cache, deadline)
    DAMAGES[damage](it)
    with pytest.raises(TemplateUnusable):
        it.check()


# --- the seed ---------------------------------------------------------------------------------------


class FakeMachine:
    """A machine that runs, or not."""

    def __init__(self, *, runs: bool = True) -> None:
        self._runs = runs

    def running(self) -> bool:
        return self._runs

    def check(self, doing: str) -> None:
        if not self._runs:
            raise self.death(doing)

    def death(self, doing: str) -> HelperDied:
        return HelperDied(f"the VM ended while {doing}")


SEED = Seed("clone", "c1", RunKeys.generate())


def guest(line: socket.socket, answer: bytes) -> threading.Thread:
    """Read a seed as the guest does, and answer."""

    def read() -> None:
        with line.makefile("rb") as lines:
            while lines.readline() not in (b"composer-end\n", b""):
                pass
        line.sendall(answer)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_a_seed_is_taken_in(deadline: Deadline) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = guest(theirs, b"composer-waiting\ncomposer-ready\nSSH-2.0-x")
        seed.plant(ours, SEED, FakeMachine(), deadline)
        # What follows the answer is the next reader's.
        assert ours.recv(100) == b"SSH-2.0-x"
        reader.join()


def test_two_seeds_share_nothing_but_the_keys() -> None:
    first, second = SEED.message(1.0).decode().split("\n"), SEED.message(1.0).decode().split("\n")
    assert first[0].split()[:4] == ["composer-seed", "clone", "1.000", "c1"]
    assert set(first[0].split()[4:]).isdisjoint(second[0].split()[4:])
    assert first[1:] == second[1:]


def test_a_guest_that_ends_dies_hangs_or_babbles(deadline: Deadline) -> None:
    for answer, machine, error in (
        (b"", FakeMachine(runs=False), HelperDied),
        (b"x" * 200_000, FakeMachine(), ShellFailed),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reader = guest(theirs, answer)
            with pytest.raises(error):
                seed.plant(ours, SEED, machine, deadline)
            reader.join()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(DeadlineExpired):
        seed.plant(ours, SEED, FakeMachine(), Deadline.after(0.3))


def test_a_guest_that_ends_with_its_seed_unread(deadline: Deadline) -> None:
    """The socket is reset then, not just closed."""
    machine = FakeMachine()
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"unread")
        ended = threading.Timer(0.2, lambda: setattr(machine, "_runs", False))
        ended.start()
        theirs.close()
        with pytest.raises(HelperDied):
            seed.plant(ours, SEED, machine, deadline)
        ended.join()


def test_waiting_is_asked_for_again(deadline: Deadline) -> None:
    """The first question may be lost in the rest of the session before."""
    ours, theirs = socket.socketpair()
    asked = []

    def answer_the_second() -> None:
        with theirs.makefile("rb") as lines:
            asked.append(lines.readline())
            asked.append(lines.readline())
        theirs.sendall(b"composer-waiting\n")

    thread = threading.Thread(target=answer_the_second, daemon=True)
    thread.start()
    with ours, theirs:
        seed.wait_until_waiting(ours, FakeMachine(), deadline)
        thread.join()
    assert asked == [b"composer-hello\n"] * 2


def test_a_shell_is_asked_for_behind_the_rest_of_a_session(deadline: Deadline) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"SSH-2.0-old\r\n" + bytes(range(256)) * 200 + b"\ncomposer-waiting\n")
        seed.ask_in(ours, FakeMachine(), deadline)
        assert theirs.recv(100) == b"composer-hello\ncomposer-go\n"


def test_helper_list_and_rm(tmp_path: Path, composer: Callable[..., Any], deadline: Deadline) -> None:
    it = made(template.cache_of(tmp_path / "cache"), deadline)
    it.count_use()
    (listed,) = json.loads(composer("helper", "list", "--json").stdout)
    assert listed["key"] == it.entry.key
    assert listed["uses"] == 1
    assert listed["inputs"]["qemu"] == "7.2.22"
    shown = composer("helper", "list").stdout
    assert it.entry.key[:12] in shown
    assert "1 times" in shown
    refused = composer("helper", "rm", "nonsense")
    assert refused.returncode == 2
    assert composer("helper", "rm", it.entry.key[:6]).returncode == 0
    assert json.loads(composer("helper", "list", "--json").stdout) == []


def test_what_a_killed_maker_left_is_found_and_what_one_at_work_makes_is_not(
    cache: Cache, deadline: Deadline
) -> None:
    key = made(cache, deadline).entry.key
    home = cache.folder / cache.kind
    for name in (f".{key}.abc.new", ".0123.def.new"):
        (home / name).mkdir()
        (home / name / "ram").write_bytes(bytes(8192))
    with locked(home / ".0123.lock", purpose="making", what="it"):
        assert [left.name for left, _ in cache.leftovers(remove=False)] == [f".{key}.abc.new"]
        assert [left.name for left, _ in cache.leftovers(remove=True)] == [f".{key}.abc.new"]
    assert [left.name for left, _ in cache.leftovers(remove=True)] == [".0123.def.new"]
    assert list(cache.leftovers(remove=True)) == []
    find_template(cache, inputs(domain())).check()
