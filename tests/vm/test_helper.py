"""The helper VM by itself: it boots, answers, dies and hangs in ways that a user is told of."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import ComposerError, DeadlineExpired, HelperDied
from composer.helper.lease import Helper, HelperShape
from tests.vm.place import CLOUD_REF, REF, Place, Repo, image_of

SHAPE = HelperShape(2**29, 2)


@contextmanager
def helper_of(place: Place, path: Path, ref: str) -> Iterator[Helper]:
    workshop = place.workshop()
    with (
        workshop.bench("test", image_of(workshop, path, ref)) as bench,
        workshop.helper(bench, SHAPE) as helper,
    ):
        yield helper


def test_helper_answers_bytes_for_bytes_and_dies_with_its_composer(place: Place, repo: Repo) -> None:
    with helper_of(place, repo.path, REF) as helper:

        def run(*argv: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
            answer = helper.shell.run(argv, stdin=stdin, deadline=Deadline.after(60))
            return answer.code, answer.stdout, answer.stderr

        odd = "a 'b' \"c\" $HOME `id` \\ \n;&|ü*"
        assert run("printf", "%s", odd) == (0, odd.encode(), b"")
        assert run("sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
        everything = os.urandom(300_000)
        assert run("cat", stdin=everything) == (0, everything, b"")
        # What a step makes is for all to read, unless it says otherwise.
        assert run("sh", "-c", "umask")[1] == b"0022\n"
        # What belongs to whom came through the packing of the tree.
        assert run("stat", "-c", "%a %u %g", "/usr/bin/sudo")[1] == b"4755 0 0\n"
        assert run("stat", "-c", "%g", "/etc/ssh/sshd_config")[1] == b"0\n"
        # No secret of the run is in what every process on the host can read.
        (pid,) = place.qemu_pids()
        private = (helper.run.path / "key").read_text().splitlines()[2]
        assert private.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert (helper.run.path / "key").stat().st_mode & 0o077 == 0
    assert place.qemu_pids() == []
    place.assert_cleared()


def test_helper_boots_from_the_cloud_kernel(place: Place) -> None:
    path = Path(os.environ["COMPOSER_TEST_REPO"])
    with helper_of(place, path, CLOUD_REF) as helper:
        answer = helper.shell.run(["uname", "-r"], deadline=Deadline.after(60))
    assert b"cloud" in answer.stdout


def panic(place: Place, repo: Repo) -> None:
    with helper_of(place, repo.path, REF) as helper:
        command = "sleep 1; echo c >/proc/sysrq-trigger; sleep 60"
        helper.shell.run(["sh", "-c", command], deadline=Deadline.after(120))


def test_panic_is_told_with_the_console(place: Place, repo: Repo) -> None:
    with pytest.raises(HelperDied) as caught:
        panic(place, repo)
    assert "Kernel panic" in (caught.value.detail or "")
    assert caught.value.log is not None
    assert "Kernel panic" in caught.value.log.read_text(errors="replace")
    assert place.qemu_pids() == []


def test_command_that_never_ends_meets_its_deadline(place: Place, repo: Repo) -> None:
    with helper_of(place, repo.path, REF) as helper:
        began = time.monotonic()
        with pytest.raises(DeadlineExpired, match="sleep"):
            helper.shell.run(["sleep", "1000"], deadline=Deadline.after(2))
        assert time.monotonic() - began < 10
        # The helper itself is still good.
        assert helper.shell.run(["true"], deadline=Deadline.after(60)).code == 0


def freeze(place: Place) -> None:
    """Stop the VM: nothing in it moves any more."""
    (pid,) = place.qemu_pids()
    os.kill(pid, signal.SIGSTOP)


def test_frozen_guest_does_not_hang_the_composer(place: Place, repo: Repo) -> None:
    with helper_of(place, repo.path, REF) as helper:
        freeze(place)
        with pytest.raises(ComposerError):
            helper.shell.run(["true"], deadline=Deadline.after(5))
    assert place.qemu_pids() == []


def test_libvirt_by_a_session_daemon(place: Place, repo: Repo, fresh: Path) -> None:
    """`--connect` with a daemon of the user's own instead of the driver in the process."""
    if os.getuid() == 0:
        pytest.skip("for root, qemu:///session is the system's daemon")
    runtime = place.folder / "x"
    runtime.mkdir(mode=0o700, exist_ok=True)
    inspected = place.composer(
        "inspect",
        fresh,
        "--deep",
        "--connect",
        "qemu:///session",
        prefix=("env", f"XDG_RUNTIME_DIR={runtime}"),
    )
    assert inspected.code == 0, inspected.stderr
    assert repo.first in inspected.stdout.replace("\n", "").replace(" ", "") or "inside" in inspected.stdout


def test_templates_are_listed_used_and_collected(place: Place, repo: Repo, fresh: Path) -> None:
    """What the build made is cloned by the next job; one that no job would use is collected."""
    made = [item["key"] for item in json.loads(place.composer("helper", "list", "--json").stdout)]
    assert made
    assert place.composer("gc").stdout.startswith("0 B ")
    for image in json.loads(place.composer("bootstrap", "list", "--json").stdout):
        assert place.composer("bootstrap", "rm", image["key"]).code == 0
    told = place.composer("gc", "--dry-run")
    assert "would be freed" in told.stdout
    assert "its bootstrap image is gone" in told.stderr
    assert json.loads(place.composer("helper", "list", "--json").stdout)
    assert place.composer("gc").code == 0
    assert json.loads(place.composer("helper", "list", "--json").stdout) == []
    inspected = place.composer("inspect", fresh, "--deep")
    assert inspected.code == 0
    assert "booting the helper from cold: there is no template of it yet" in inspected.stderr
    cold = place.composer("inspect", fresh, "--deep", "--cold")
    assert cold.code == 0
    assert "from cold" not in cold.stderr
