"""The product in the field: booted by a plain QEMU call, it upgrades itself and its boot menu follows."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.export.http import http_export
from tests.vm.ground import Repo
from tests.vm.place import PASSWORD, Place

_STEP_SECONDS = 240


class Console:
    """A serial console: waits for a pattern, types lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        self._out, self._in = process.stdout.fileno(), process.stdin.fileno()
        self._unread = ""
        self.all = ""

    def expect(self, pattern: str) -> str:
        """Wait for ``pattern``; return all that came before its end."""
        began = time.monotonic()
        while not (found := re.search(pattern, self._unread)):
            assert time.monotonic() - began < _STEP_SECONDS, f"no {pattern!r} in: {self.all[-3000:]}"
            readable, _, _ = select.select([self._out], [], [], 1)
            if readable:
                chunk = os.read(self._out, 65536)
                assert chunk, f"the machine ended: {self.all[-3000:]}"
                text = chunk.decode("utf-8", "replace").replace("\r", "")
                self._unread += text
                self.all += text
        said, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return said

    def type(self, line: str) -> None:
        os.write(self._in, f"{line}\n".encode())

    def login(self) -> None:
        self.expect("tested login: ")
        self.type("admin")
        self.expect("Password: ")
        self.type(PASSWORD)
        self.expect(r"\$ ")

    def root(self, command: str) -> str:
        """Run a command by sudo; return what it says."""
        # The mark is typed in two pieces, so that the echo of the line does not look like its end.
        self.type(f"echo {PASSWORD} | sudo -S -p '' sh -c '{command}'; echo en''ded=$?")
        said = self.expect(r"ended=\d+")
        assert said.endswith("ended=0"), said
        return said


@contextmanager
def booted(disk: Path, *more: str) -> Iterator[Console]:
    options = "-machine q35 -accel tcg -m 1G -nographic -nic user,model=virtio -drive"
    argv = ["qemu-system-x86_64", *options.split(), f"file={disk},format=qcow2,if=virtio", *more]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Console(process)
        finally:
            process.kill()


@pytest.fixture
def exported(repo: Repo) -> Iterator[str]:
    repo.point(repo.second)
    with http_export(repo.path) as export:
        # QEMU's user network shows the product the host's loopback at this address.
        yield export.url.replace("127.0.0.1", "10.0.2.2")


def test_product_upgrades_itself_and_boots_the_new_commit(
    place: Place, repo: Repo, fresh: Path, exported: str
) -> None:
    with booted(fresh) as console:
        console.login()
        console.root(f'sed -i "s|^url=.*|url={exported}|" /ostree/repo/config')
        console.root("ostree admin upgrade")
        status = console.root("ostree admin status")
        assert f"{repo.second}.0 (pending)" in status
        assert re.search(rf"\* debian {repo.first}\.0", status)
        console.type(f"echo {PASSWORD} | sudo -S systemctl reboot")
        console.login()
        status = console.root("ostree admin status")
        assert re.search(rf"\* debian {repo.second}\.0", status)
        assert f"{repo.first}.0 (rollback)" in status
        console.root("sync")
    # The composer does not trust its manifest over what is on the disk now.
    updated = place.composer("update", fresh)
    assert updated.code == 0, updated.stderr
    assert "helper" in updated.phases()
    said = json.loads(place.composer("inspect", fresh, "--json").stdout)
    assert [item["commit"] for item in said["deployments"]] == [repo.second, repo.first]
    # Nor does it forget, now that its manifest fits again, that there is more on it than a build would make.
    assert said["unchanged"]
    assert said["written"]
    # The same disk by the README's other call, under UEFI.
    with booted(fresh, "-snapshot", "-bios", "/usr/share/ovmf/OVMF.fd") as console:
        console.login()
        console.root("test -d /sys/firmware/efi")
        status = console.root("ostree admin status")
        assert re.search(rf"\* debian {repo.second}\.0", status)
        assert f"{repo.first}.0 (rollback)" in status
