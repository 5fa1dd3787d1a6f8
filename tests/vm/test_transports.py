"""Every way of a commit into a helper: the same deployment by each, and nothing else within reach."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from composer.compose import steps
from composer.compose.supply import Supply, opened_supply
from composer.compose.target import overlay_target
from composer.compose.update import bootstrap_for, known_disk, source_for
from composer.deadline import Deadline
from composer.export.delta import Wanted
from composer.helper.job import Job, run_job
from composer.helper.lease import Helper, HelperShape
from tests.vm.ground import Repo
from tests.vm.place import Place, ostree

ODD = "test/odd"
# What of a deployment its files' checksums do not cover: names, kinds, modes, owners, links.
_TREE = r"""
cd /run/composer/sysroot/ostree/deploy/debian/deploy/"$1".0/
find . -printf '%P|%y%m %U:%G %l\0' | sort -z
"""


@pytest.fixture(scope="module")
def odd(repo: Repo, place: Place) -> str:
    """Commit the second tree with things in it that transports may trip over; return the commit."""
    tree = place.folder / "odd"
    home = tree / "usr/share/odd"
    home.mkdir(parents=True)
    for name in ("with a\nnewline", "Grüße ☃", "-rf *", "n" * 255, "quoted 'a' \"b\" $(c) `d`"):
        (home / name).write_text(name)
    (home / "empty").touch()
    (home / "other name of empty").hardlink_to(home / "empty")
    (home / "setuid").write_text("#!/bin/sh\n")
    (home / "setuid").chmod(0o4755)
    (home / "link").symlink_to("with a\nnewline")
    (home / "attributed").write_text("x")
    os.setxattr(home / "attributed", "user.note", b"\0binary\xff" * 9)
    with (home / "sparse").open("wb") as sparse:
        sparse.seek(2**28 - 1)
        sparse.write(b"\0")
    argv = ["commit", "-b", ODD, f"--parent={repo.second}", f"--tree=ref={repo.second}", f"--tree=dir={tree}"]
    argv += ["--owner-uid=0", "--owner-gid=0", "--add-metadata-string=version=odd"]
    commit = ostree(repo.path, *argv)
    place.sign(repo.path, commit)
    return commit


@contextmanager
def supplied(
    place: Place, disk: Path, transport: str, wanted: Wanted, ref: str
) -> Iterator[tuple[Supply, Helper]]:
    """A helper with the disk attached, and an open way for a commit into it."""
    workshop = place.workshop()
    workshop = replace(workshop, options=replace(workshop.options, transport=transport))
    manifest = known_disk(disk)
    with ExitStack() as stack:
        source = stack.enter_context(source_for(workshop, manifest))
        repo = workshop.fetch(source, ref, wanted.commit)
        image = bootstrap_for(workshop, manifest, source, ())
        folder = disk.parent
        supply = stack.enter_context(opened_supply(workshop, source, repo, wanted, image, folder))
        bench = stack.enter_context(workshop.bench("test", image))
        shape = HelperShape(manifest.helper.memory, manifest.helper.cpus, supply.share)
        helper = stack.enter_context(workshop.helper(bench, shape, warming=True))
        helper.machine.attach(overlay_target(disk.with_name(f"{transport}.qcow2"), disk, workshop.deadline))
        yield supply, helper


def transports() -> list[str]:
    return ["delta", "http", "9p", *(["virtiofs"] if os.geteuid() == 0 else [])]


_SCAN = r"""
set -u
ip -o link | grep -v ' lo:' && echo "another network device"
ip route show table all | grep -v '^local\|^broadcast\|dev lo' && echo "a route"
for address in 10.0.2.2 10.0.2.3 10.0.2.15 10.0.2.1 169.254.169.254 192.168.122.1 8.8.8.8 "$1"; do
    for port in 22 53 80 111 443 631 2375 3128 5432 6379 8080 16509 "$2"; do
        timeout 2 bash -c "exec 3<>/dev/tcp/$address/$port" 2>/dev/null && echo "$address:$port answers"
    done
done
timeout 2 getent hosts example.org && echo "names are looked up"
# All that listens on the guest's own loopback, by the kernel's list: address and port in hex, state 0A.
awk '$4 == "0A" { print "listens " $2 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null
timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/$2" 2>/dev/null && echo "the host's port answers on loopback"
exit 0
"""


def assert_reaches_nothing_else(helper: Helper, url: str, secret: int, deadline: Deadline) -> None:
    """Assert that a guest reaches the repo at ``url``, and not the host's port ``secret``, nor others."""
    port = int(url.split(":")[2].partition("/")[0])
    mine = socket.gethostbyname(socket.gethostname())
    answer = helper.shell.run(["sh", "-c", _SCAN, "sh", mine, str(secret)], deadline=deadline)
    assert answer.stdout.decode().split("\n") == [f"listens 0100007F:{port:04X}", ""], answer
    # And what listens there is the repo: behind its token, its paths alone.
    ask = "exec 3<>/dev/tcp/127.0.0.1/$1; printf 'GET %s HTTP/1.0\\r\\n\\r\\n' \"$2\" >&3; head -n 1 <&3"
    for path, status in (("/config", b"403"), (f"{url[url.index('/', 8) :]}/config", b"200")):
        answer = helper.shell.run(["bash", "-c", ask, "bash", str(port), path], deadline=deadline)
        assert answer.stdout.split()[1:2] == [status], answer


def test_every_transport_yields_the_same_deployment_and_reaches_nothing_else(
    place: Place, repo: Repo, fresh: Path, odd: str
) -> None:
    workshop = place.workshop()
    manifest = known_disk(fresh)
    seen: dict[str, bytes] = {}
    for transport in transports():
        wanted = Wanted(odd, frozenset({repo.first}))
        with supplied(place, fresh, transport, wanted, ODD) as (supply, helper):
            data = {
                **steps.partition_data(manifest.partitions),
                "ref": ODD.encode(), "commit": odd.encode(), "stateroot": b"debian", "keep": b"2",
                "remote-name": b"origin",
            }  # fmt: skip
            with (
                socket.create_server(("127.0.0.1", 0)) as secret,
                supply.reaching(helper, workshop) as where,
            ):
                if transport == "http":
                    url, port = where["export-url"].decode(), secret.getsockname()[1]
                    assert_reaches_nothing_else(helper, url, port, workshop.deadline)
                names = ("mount-sysroot", *supply.steps, "deploy", "report", "fsck")
                result = run_job(helper.shell, Job(names, data | where), workshop.reporter, workshop.deadline)
            assert result.one("fsck") == "clean"
            assert result.all("deployment")[0].startswith(odd)
            answer = helper.shell.run(["sh", "-ec", _TREE, "sh", odd], deadline=workshop.deadline)
            assert answer.code == 0, answer.stderr
            seen[transport] = answer.stdout
            assert 0 < supply.moved.bytes < 320 * 2**20
    assert b"usr/share/odd/with a\nnewline|f644 0:0 \0" in seen["delta"]
    assert b"usr/share/odd/setuid|f4755 0:0 \0" in seen["delta"]
    assert set(seen.values()) == {seen["delta"]}, "transports differ"
