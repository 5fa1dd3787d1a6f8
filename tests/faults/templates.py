"""Templates: clones share nothing that they must not, and a damaged template leads to a cold boot."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from composer.compose.workshop import Bench, Workshop
from composer.events import Reporter, Tape
from composer.helper.lease import Helper, HelperShape, helper_domain, warm_helper
from composer.helper.template import Template, _seal, cache_of
from composer.store.folders import copied
from tests.faults.experiment import SOAK_SECONDS, Experiment, Trial
from tests.vm.ground import Ground
from tests.vm.place import REF, image_of, timed

SHAPE = HelperShape(2**29, 2)
_SKEW_SECONDS = 0.5
_FALLBACK_SECONDS = 30.0
_DAMAGES = ("ram-cut", "state-cut", "ram-flip", "state-flip", "gone", "sealed-cut", "sealed-version")


@contextmanager
def _bench(ground: Ground, purpose: str) -> Iterator[tuple[Workshop, Bench]]:
    workshop = ground.place.workshop(SOAK_SECONDS)
    with workshop.bench(purpose, image_of(workshop, ground.repo.path, REF)) as bench:
        yield workshop, bench


# What a clone tells of itself, a line each.
_TELL = """
    date +%s.%N
    head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
    cat /proc/sys/kernel/random/uuid
    cat /etc/machine-id
    sha256sum </run/composer/seed/host_key | cut -c1-64
    hostname
    dd if=/dev/urandom of=/var/tmp/disk bs=1M count=8 2>/dev/null
    mkfs.ext4 -q /var/tmp/disk && e2fsck -fn /var/tmp/disk >/dev/null 2>&1 && echo clean
"""


def _told(workshop: Workshop, helper: Helper) -> list[str]:
    """Return what a clone says of itself; its clock is checked on the way."""
    before = time.time()
    answer = helper.shell.run(["sh", "-c", _TELL], deadline=workshop.deadline)
    after = time.time()
    assert answer.code == 0, answer.stderr
    clock, *identity, clean = answer.stdout.decode().split()
    assert clean == "clean"
    assert before - _SKEW_SECONDS < float(clock) < after + _SKEW_SECONDS, (before, clock, after)
    assert len(identity) == 5
    return identity


@contextmanager
def _clones(ground: Ground, at_once: int) -> Iterator[Trial]:
    with _bench(ground, "restores") as (workshop, bench):
        template = workshop.warm(bench, SHAPE)
        seen: set[str] = set()
        numbers = itertools.count()

        def clone(number: int) -> list[str]:
            run = bench.run.part(str(number))
            domain = helper_domain(bench.image, bench.abilities, SHAPE, run)
            now = timed(workshop)
            with warm_helper(bench.host, domain, template, run, now.deadline) as helper:
                return _told(now, helper)

        def trial(_chance: random.Random) -> None:
            with ThreadPoolExecutor(at_once) as threads:
                told = list(threads.map(clone, [next(numbers) for _ in range(at_once)]))
            identities = [word for words in told for word in words]
            assert len(set(identities)) == len(identities), told
            assert seen.isdisjoint(identities), told
            seen.update(identities)

        yield trial


def restores(ground: Ground) -> AbstractContextManager[Trial]:
    """One clone after the other."""
    return _clones(ground, 1)


def crowd(ground: Ground) -> AbstractContextManager[Trial]:
    """Eight clones at once."""
    return _clones(ground, 8)


def _flip(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(chance.randrange(path.stat().st_size))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ (1 << chance.randrange(8))]))


def _truncate(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(chance.randrange(path.stat().st_size))


def _damage(template: Template, chance: random.Random) -> str:
    """Damage a template in one of many ways; return which."""
    info = template.entry.path / "info.json"
    kind = chance.choice(_DAMAGES)
    if kind == "gone":
        chance.choice([template.ram, template.state]).unlink()
    elif kind.startswith(("ram", "state")):
        path = template.ram if kind.startswith("ram") else template.state
        (_truncate if kind.endswith("cut") else _flip)(path, chance)
    else:
        # As if it had been written so: the seal is right, and QEMU itself must refuse.
        if kind == "sealed-cut":
            _truncate(template.state, chance)
        else:
            with template.state.open("r+b") as file:
                file.seek(4)  # the version of the stream (migration/savevm.c)
                file.write(b"\0\0\0\x7f")
        said = json.loads(info.read_text())
        info.write_text(json.dumps(said | {"sealed": _seal(template.entry.path)}))
    return kind


def _renewed(template: Template, whole: Path) -> None:
    """Put a template's files back from a copy, and seal them as they are now."""
    home = template.entry.path
    for file in whole.iterdir():
        # Another file in its place: the one there may be a hard link of a template of others.
        (home / file.name).unlink(missing_ok=True)
        copied(file, home / file.name)
    info = home / "info.json"
    said = json.loads(info.read_text())
    # The kernel's clock for a file's times ticks every few milliseconds; damage within the same tick as the
    # making would not show in them.
    time.sleep(0.05)
    info.write_text(json.dumps(said | {"sealed": _seal(home)}))


@contextmanager
def damaged(ground: Ground) -> Iterator[Trial]:
    """A damaged template: a cold boot with one line that says why, in time."""
    with _bench(ground, "damaged") as (workshop, bench):
        template = workshop.warm(bench, SHAPE)
        whole = ground.place.folder / "whole-template"
        whole.mkdir()
        for file in (template.ram, template.state):
            copied(file, whole / file.name)

        def trial(chance: random.Random) -> None:
            _renewed(template, whole)
            kind = _damage(template, chance)
            tape = Tape()
            watched = replace(timed(workshop), reporter=Reporter(tape))
            began = time.monotonic()
            with watched.helper(bench, SHAPE) as helper:
                took = time.monotonic() - began
                answer = helper.shell.run(["cat", "/etc/machine-id"], deadline=watched.deadline)
            assert re.fullmatch(rb"[0-9a-f]{32}\n", answer.stdout)
            (said,) = tape.texts("warning")
            assert said.startswith("booting the helper from cold: "), (kind, said)
            assert took < _FALLBACK_SECONDS, (kind, took)

        # The renewal by itself is not what is refused.
        _renewed(template, whole)
        workshop.warm(bench, SHAPE).check()
        yield trial
        cache_of(workshop.folders.cache).remove(template.entry.key)
        shutil.rmtree(whole)


@contextmanager
def killed(ground: Ground) -> Iterator[Trial]:
    """SIGKILL as a template is made: none is left that anybody would use, unless it is whole."""
    place = ground.place
    templates = cache_of(place.workshop().folders.cache)

    def trial(chance: random.Random) -> None:
        for entry in list(templates.entries()):
            templates.remove(entry.key)
        with place.started("helper", "warm", ground.recipe) as process:
            time.sleep(chance.uniform(1.0, 16.0))
            process.kill()
            process.communicate()
        place.wait_for_no_vm(10)
        for entry in templates.entries():
            Template(entry).check()
        with _bench(ground, "killed") as (workshop, bench):
            template = workshop.warm(bench, SHAPE)
            domain = helper_domain(bench.image, bench.abilities, SHAPE, bench.run)
            with warm_helper(bench.host, domain, template, bench.run, workshop.deadline) as helper:
                _told(workshop, helper)
        assert place.composer("gc").code == 0
        home = templates.folder / templates.kind
        assert [path.name for path in home.iterdir() if path.name.endswith(".new")] == []

    yield trial


EXPERIMENTS = (
    Experiment("template-restores", 3, 20, 200, restores),
    Experiment("template-crowd", 1, 1, 10, crowd),
    Experiment("template-damaged", 3, 10, 50, damaged),
    Experiment("template-killed", 1, 1, 20, killed),
)
