"""What the verbs that run a job have in common: their options, and the workshop made from them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import click

from composer.cli import show
from composer.cli.monitors import JsonLines, PlainLines, Terminal
from composer.compose.build import Outcome
from composer.compose.workshop import Options, Workshop
from composer.deadline import Deadline
from composer.errors import BadInput
from composer.events import Fanout, Monitor, Reporter, Tape
from composer.export.choice import TRANSPORTS
from composer.helper.hypervisor import EMBEDDED
from composer.store.folders import Folders

PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class JobOptions:
    """The common options, as given."""

    options: Options
    events: Path | None


@dataclass(frozen=True)
class Session:
    """A workshop and the tape of what happened in it."""

    workshop: Workshop
    tape: Tape

    def timings(self) -> list[tuple[str, float]]:
        """Return the seconds of each phase that ended, in order."""
        ended = [event for event in self.tape.events if event.kind == "phase-end"]
        return [(event.name, float(event.data["seconds"])) for event in ended]


_CONNECT = click.option(
    "--connect", metavar="URI", default=EMBEDDED, show_default=True,
    help="libvirt connection; 'embed' runs the QEMU driver in this process.",
)  # fmt: skip
_ACCEL = click.option(
    "--accel", "accelerator", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True,
    help="auto: KVM if a guest really runs on it, else emulation.",
)  # fmt: skip
_AS_ROOT = click.option(
    "--as-root", is_flag=True, help="Let root's helper VMs run as root, not as an account of their own."
)
_HELPER = (
    click.option("--cold", is_flag=True, help="Boot the helper VM instead of cloning its template."),
    click.option("--keep-vm", is_flag=True, help="Where a job fails, leave its helper VM running."),
    click.option("--debug-shell", is_flag=True, help="Where a job fails, open a shell in its helper VM."),
)
_DISK = (
    click.option("--wait", is_flag=True, help="Wait for a disk that another composer has, up to --timeout."),
    click.option(
        "--trust-folder", is_flag=True, help="As root: take a disk in a folder that others can write to."
    ),
)
_COMMIT = click.option(
    "--transport", type=click.Choice(["auto", *TRANSPORTS]), default="auto", show_default=True,
    help="How the helper gets the commit; auto takes the fastest that works here.",
)  # fmt: skip
_PARANOID = click.option(
    "--paranoid", is_flag=True, help="Compare the new disk with what it was made from, however large it is."
)
_ALWAYS = (
    click.option("--timeout", type=click.FloatRange(min=1), default=3600.0, show_default=True,
                 metavar="SECONDS", help="Give up after this long."),
    click.option("--events", type=PATH, metavar="FILE", help="Write what happens as JSON lines to FILE."),
    # Read off argv, before any verb is known (app.py).
    click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
)  # fmt: skip
# What a verb works with, and the options that come with it.
_WITH = {
    "libvirt": (_CONNECT,),
    "vm": (_CONNECT, _ACCEL, _AS_ROOT),
    "helper": (_CONNECT, _ACCEL, _AS_ROOT, *_HELPER),
    "disk": _DISK,
    "commit": (_COMMIT,),
    "rewrite": (_PARANOID,),
}
Verb = Callable[..., None]


def job_options(*works_with: str) -> Callable[[Verb], Verb]:
    """Give a verb the options of what it works with; it gets them as one argument, ``job``."""
    names = {field.name for field in fields(Options)}

    def given_to(command: Verb) -> Verb:
        @functools.wraps(command)
        def wrapped(*, events: Path | None, **said: Any) -> None:
            options = Options(**{name: said.pop(name) for name in names & said.keys()})
            command(job=JobOptions(options, events), **said)

        chosen = [option for kind in works_with for option in _WITH[kind]]
        for option in reversed((*chosen, *_ALWAYS)):
            wrapped = option(wrapped)
        return wrapped

    return given_to


@contextmanager
def session(job: JobOptions) -> Iterator[Session]:
    """Yield a workshop whose events go to the terminal, to --events, and to a tape."""
    with ExitStack() as stack:
        tape = Tape()
        shown: Monitor = stack.enter_context(Terminal()) if sys.stderr.isatty() else PlainLines(sys.stderr)
        monitors: list[Monitor] = [tape, shown]
        if job.events is not None:
            try:
                file = job.events.open("w", encoding="utf-8")
                stack.callback(_closed, file)
            except OSError as error:
                raise BadInput(f"cannot write the events to {job.events}: {error.strerror}") from error
            monitors.append(JsonLines(file))
        if job.options.debug_shell and not sys.stdin.isatty():
            raise BadInput("--debug-shell wants a terminal")
        workshop = Workshop(
            folders=Folders.of(os.environ),
            reporter=Reporter(Fanout(*monitors)),
            options=job.options,
            deadline=Deadline.after(job.options.timeout),
        )
        yield Session(workshop, tape)


def _closed(file: IO[str]) -> None:
    """Close the file of events; what it could not write any more is no fault of the job."""
    with suppress(OSError):
        file.close()


def tell_outcome(made: Session, disk: Path, outcome: Outcome, text: str) -> None:
    """Tell what a build or an update came to: as an event for programs, with timings for people."""
    made.workshop.reporter.result(
        "job",
        text,
        disk=str(disk),
        changed=outcome.changed,
        commit=outcome.manifest.commit,
        bytes=outcome.bytes_moved,
        objects=outcome.objects_moved,
        size=outcome.size,
        growth=outcome.growth,
        deployments=[deployment.commit for deployment in outcome.manifest.deployments],
        pruned=[deployment.commit for deployment in outcome.pruned],
    )
    show.timings(made.timings() if outcome.changed else [])
    show.say(text)
