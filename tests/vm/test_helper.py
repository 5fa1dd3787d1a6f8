"""The helper VM by itself: it boots, answers, dies and hangs in ways that a user is told of."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from composer.deadline import Deadline
from composer.errors import ComposerError, DeadlineExpired, HelperDied
from composer.helper.lease import Helper, HelperShape
from tests.vm.ground import Built, Repo
from tests.vm.place import CLOUD_REF, Place, helper_of, image_of


def test_helper_answers_meets_deadlines_and_dies_telling_why(place: Place, built: Built) -> None:
    def live_and_die() -> None:
        with helper_of(place, built.disk) as helper:
            assert_answers_bytes_for_bytes(helper)
            assert_keeps_its_secrets(place, helper)
            assert_is_confined(place)
            assert_ends_a_command_at_its_deadline(helper)
            # The helper itself is still good.
            assert helper.shell.run(["true"], deadline=Deadline.after(60)).code == 0
            command = "sleep 1; echo c >/proc/sysrq-trigger; sleep 60"
            helper.shell.run(["sh", "-c", command], deadline=Deadline.after(120))

    with pytest.raises(HelperDied) as caught:
        live_and_die()
    assert "Kernel panic" in (caught.value.detail or "")
    assert caught.value.log is not None
    assert "Kernel panic" in caught.value.log.read_text(errors="replace")
    assert place.qemu_pids() == []
    place.assert_cleared()


def assert_answers_bytes_for_bytes(helper: Helper) -> None:
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


def assert_keeps_its_secrets(place: Place, helper: Helper) -> None:
    """Assert that no secret of the run is in what every process on the host can read."""
    (pid,) = place.qemu_pids()
    private = (helper.run.path / "key").read_text().splitlines()[2]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert not any(private.encode() in word for word in words)
    assert (helper.run.path / "key").stat().st_mode & 0o077 == 0


def assert_is_confined(place: Place) -> None:
    """Assert that QEMU runs in its seccomp sandbox and may gain no privileges (seccomp(2), prctl(2))."""
    (pid,) = place.qemu_pids()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    sandbox = words[words.index("-sandbox") + 1]
    assert {"on", "spawn=deny", "elevateprivileges=deny"} <= set(sandbox.split(","))


def assert_ends_a_command_at_its_deadline(helper: Helper) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExpired, match="sleep"):
        helper.shell.run(["sleep", "1000"], deadline=Deadline.after(2))
    assert time.monotonic() - began < 10


def test_frozen_guest_does_not_hang_the_composer(place: Place, built: Built) -> None:
    with helper_of(place, built.disk) as helper:
        (pid,) = place.qemu_pids()
        os.kill(pid, signal.SIGSTOP)  # nothing in it moves any more
        with pytest.raises(ComposerError):
            helper.shell.run(["true"], deadline=Deadline.after(5))
    assert place.qemu_pids() == []


def test_helper_boots_from_the_cloud_kernel(place: Place) -> None:
    workshop = place.workshop()
    image = image_of(workshop, Path(os.environ["COMPOSER_TEST_REPO"]), CLOUD_REF)
    with (
        workshop.bench("test", image) as bench,
        workshop.helper(bench, HelperShape(2**29, 1)) as helper,
    ):
        answer = helper.shell.run(["uname", "-r"], deadline=Deadline.after(60))
    assert b"cloud" in answer.stdout


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
        "--json",
        "--connect",
        "qemu:///session",
        prefix=("env", f"XDG_RUNTIME_DIR={runtime}"),
    )
    assert inspected.code == 0, inspected.stderr
    found = json.loads(inspected.stdout)["deep"]["deployments"]
    assert [deployment["commit"] for deployment in found] == [repo.first]


def test_templates_are_listed_used_and_collected(place: Place, fresh: Path) -> None:
    """What the build made is cloned by the next job; one that no job would use is collected."""
    made = [item["key"] for item in json.loads(place.composer("helper", "list", "--json").stdout)]
    assert made
    assert place.composer("gc").stdout.startswith("0 B ")
    used = place.composer("inspect", fresh, "--deep")
    assert used.code == 0
    assert "from cold" not in used.stderr
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
