"""Guests that die or hang in the midst of a step: a typed error in time, with the step and the evidence."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from composer.compose.update import Overrides, update
from composer.deadline import Deadline
from composer.errors import ComposerError, GuestStepFailed, HelperDied, ShellFailed
from composer.events import Event, Reporter
from composer.helper.debug import debug_shell
from composer.store.runs import Runs
from tests.faults.experiment import Experiment, Trial
from tests.faults.kills import subject
from tests.vm.ground import Ground
from tests.vm.place import Place

_LIMIT_SECONDS = 60.0
_STEPS = ("mount-sysroot", "mount-delta", "pull", "deploy", "check", "report", "finalise")
_ALL = "for p in /proc/[0-9]*; do read -r name <$p/comm; p=${p#/proc/}; case $name in"
# What each is in the guest, done from its other port.
_DEATHS = {
    "panic": "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
    "sshd": f"{_ALL} sshd*) [ $p = $PPID ] || kill -9 $p ;; esac; done",
    "memory": "echo -1000 >/proc/self/oom_score_adj; mount -o remount,size=100% /tmp; "
    "cat /dev/zero >/tmp/fill",
    "hang": f"{_ALL} ostree | e2fsck | fstrim) kill -STOP $p ;; esac; done; "
    "read -r pid </run/composer/job/state/pid; kill -STOP $pid",
    "frozen": "",
}


class Saboteur:
    """A monitor that strikes as a step begins; ``struck`` is when, on the monotonic clock."""

    def __init__(self, place: Place, step: str, death: str) -> None:
        self._place, self._step, self._death = place, step, death
        self._stack = ExitStack()
        self._strike: Callable[[], None] = lambda: None
        self.struck: float | None = None

    def __enter__(self) -> Saboteur:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ComposerError, OSError):
            self._stack.close()

    def handle(self, event: Event) -> None:
        if (event.kind, event.name) == ("phase-end", "helper"):
            self._strike = self._prepared()
        elif (event.kind, event.name) == ("phase-start", self._step) and self.struck is None:
            self.struck = time.monotonic()
            threading.Thread(target=self._strike, daemon=True).start()

    def _prepared(self) -> Callable[[], None]:
        """Make all ready, so that the strike itself takes no time."""
        if self._death == "frozen":
            (pid,) = self._place.qemu_pids()
            return lambda: os.kill(pid, signal.SIGSTOP)
        (run,) = Runs(self._place.runs).all()
        port = self._stack.enter_context(debug_shell(run, Deadline.after(30)))

        def strike() -> None:
            with suppress(ComposerError):
                port.run(["/bin/sh", "-c", _DEATHS[self._death]], deadline=Deadline.after(30))

        return strike


@contextmanager
def deaths(ground: Ground) -> Iterator[Trial]:
    """A guest that panics, freezes, loses its sshd or its memory, or hangs in a step."""
    place = ground.place
    with subject(ground, "deaths") as disk:
        disk.renew()
        ran = place.composer("update", disk.disk)  # so that caches are warm and the step comes soon
        assert ran.code == 0, ran.stderr

        def struck(step: str, death: str) -> bool:
            """Return whether the update failed of it; a step that was over by then cannot."""
            disk.renew()
            with Saboteur(place, step, death) as saboteur:
                workshop = replace(place.workshop(), reporter=Reporter(saboteur))
                try:
                    update(workshop, disk.disk, Overrides())
                except ComposerError as error:
                    failed = error
                else:
                    return False
            assert saboteur.struck is not None
            took = time.monotonic() - saboteur.struck
            assert took < _LIMIT_SECONDS, (took, failed)
            assert isinstance(failed, HelperDied | GuestStepFailed | ShellFailed), repr(failed)
            assert failed.step, repr(failed)
            assert failed.log is not None, repr(failed)
            assert failed.detail, repr(failed)
            if not isinstance(failed, HelperDied):  # whose detail is the console's
                assert "the console's last lines:" in failed.detail, failed.detail
            assert failed.disk is not None, repr(failed)
            assert "as it was before" in failed.disk
            assert disk.untouched()
            return True

        def trial(chance: random.Random) -> None:
            step, death = chance.choice(_STEPS), chance.choice(sorted(_DEATHS))
            # The longest of all steps is the one that a late strike still meets.
            assert struck(step, death) or struck("deploy", death), (step, death)
            place.wait_for_no_vm(5)

        yield trial


EXPERIMENTS = (Experiment("guest-deaths", 3, 10, 100, deaths),)
