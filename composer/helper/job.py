"""A job for the helper: steps with their data go in, events and one result come back.

Upload and run are one command, so a job costs one round trip.  Everything the recipe or the host has
to say travels as files of a tar archive; the command itself never changes.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, GuestStepFailed
from composer.events import Reporter
from composer.helper.bootstrap import BootstrapImage
from composer.helper.shell import Commands
from composer.resources import bootstrap_file

_FOLDER = "/run/composer/job"
# The tree's own sh, not busybox's: the latter prefers its own applets to the tree's programs.
_RUN = [
    "/bin/sh",
    "-c",
    f"rm -rf {_FOLDER} && mkdir {_FOLDER} && cd {_FOLDER} && tar -x && exec /bin/sh ./dispatch",
]
# In seconds: between two beats of the guest; without one until it counts as frozen; without any work done
# until a step counts as hung; and longer than any step takes, also under emulation.
_SILENCE_SECONDS = 25.0
_WATCH = {"beat-seconds": b"5", "stall-limit": b"30", "step-limit": b"1800"}
_LONGEST_LINE = 2**18
_LONGEST_MS = 10**9
_LONGEST_LOG = 2**14
# Of a whole job: a beat every five seconds, a few lines a step, and one line of results.
_MOST_BYTES = 2**22


@dataclass(frozen=True)
class Job:
    """Steps to run in order, and their data: file names below data/ with what is in them."""

    steps: tuple[str, ...]
    data: Mapping[str, bytes]


@dataclass(frozen=True)
class JobResult:
    """What the steps had to report: pairs in the order they came; a key may come several times."""

    values: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]

    def all(self, key: str) -> list[str]:
        """Return all values of a key."""
        return [value for name, value in self.values if name == key]

    def one(self, key: str) -> str:
        """Return the value of a key that comes once; GuestStepFailed where it did not come."""
        values = self.all(key)
        if len(values) != 1:
            raise GuestStepFailed("report", f"{len(values)} values of {key!r} came back instead of one")
        return values[0]

    def number(self, key: str) -> int:
        """Return the value of a key that comes once, a number; GuestStepFailed where it is none."""
        value = self.one(key)
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise GuestStepFailed("report", f"{key} is no number: {value[:40]!r}")
        return int(value)


def _step_file(step: str) -> Path:
    return bootstrap_file("guest") / "steps" / f"{step}.sh"


def lacking_tools(steps: tuple[str, ...], image: BootstrapImage) -> list[str]:
    """Name the programs that steps need and the helper's tree lacks, with the step."""
    lacking = []
    for step in steps:
        for line in _step_file(step).read_text().splitlines():
            if line.startswith("# needs: "):
                needed = line.removeprefix("# needs: ").split()
                lacking += [f"{tool} (step {step})" for tool in needed if tool not in image.programs]
    return lacking


def check_tools(steps: tuple[str, ...], image: BootstrapImage) -> None:
    """Raise BadInput where the helper's tree lacks a program that a step needs, before any VM starts."""
    if lacking := lacking_tools(steps, image):
        raise BadInput(
            f"the helper's tree {image.entry.info['commit'][:12]} lacks programs: {', '.join(lacking)}",
            hint="add them to the tree, or have the recipe name another for the helper ([bootstrap] ref); "
            "a disk that exists takes it by   composer update DISK --recipe RECIPE",
        )


def _archive(job: Job) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o600
            archive.addfile(entry, io.BytesIO(content))

        for name in ("dispatch", "lib.sh"):
            add(name, (bootstrap_file("guest") / name).read_bytes())
        for step in job.steps:
            add(f"steps/{step}.sh", _step_file(step).read_bytes())
        add("steps.list", "".join(f"{step}\n" for step in job.steps).encode())
        for name, content in sorted({**_WATCH, **job.data}.items()):
            add(f"data/{name}", content)
    return buffer.getvalue()


class _Answers:
    """Reads the dispatcher's lines.  The guest is not trusted: what is no event is dropped."""

    def __init__(self, reporter: Reporter, titles: Mapping[str, str], steps: Sequence[str]) -> None:
        self._reporter = reporter
        self._titles = titles
        # Each may start once, and end once after that.
        self._steps = frozenset(steps)
        self._to_start, self._to_end = set(steps), set[str]()
        self._bytes = 0
        self._rest = bytearray()
        self.seconds: dict[str, float] = {}
        self.values: tuple[tuple[str, str], ...] | None = None
        self.failed: GuestStepFailed | None = None
        self.running = ""

    def feed(self, chunk: bytes) -> None:
        """Take what the guest wrote; GuestStepFailed if that is more than any job has to say."""
        self._bytes += len(chunk)
        if self._bytes > _MOST_BYTES:
            raise GuestStepFailed(self.running or "dispatch", "the helper talks without end")
        # A piece may be a single byte, so what came before is not copied for each.
        end, *begun = chunk.split(b"\n")
        self._rest += end[: _LONGEST_LINE - len(self._rest)]
        for begin in begun:
            self._read(bytes(self._rest))
            self._rest = bytearray(begin[:_LONGEST_LINE])

    def _read(self, line: bytes) -> None:
        try:
            event = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return
        if isinstance(event, dict):
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        step = str(event.get("step", ""))
        kind = event.get("event")
        if kind == "result" and isinstance(event.get("values"), list) and self.values is None:
            pairs = [pair for pair in event["values"] if isinstance(pair, list) and len(pair) == 2]
            self.values = tuple((str(key), str(value)) for key, value in pairs)
        elif kind == "start" and step in self._to_start:
            self._to_start.remove(step)
            self._to_end.add(step)
            self.running = step
            self._reporter.started(step, self._titles.get(step, step))
        elif kind == "end" and step in self._to_end and _is_ms(event.get("ms")):
            self._to_end.remove(step)
            self.seconds[step] = event["ms"] / 1000
            self._reporter.ended(step, event["ms"] / 1000)
        elif kind == "failed" and step in self._steps and self.failed is None:
            log, killed = str(event.get("log"))[:_LONGEST_LOG] or None, event.get("killed") is True
            self.failed = GuestStepFailed(step, str(event.get("why"))[:1000], detail=log, killed=killed)


def _is_ms(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LONGEST_MS


# What a user reads while a step runs.
_TITLES = {
    "partition": "writing the partition table",
    "format-ext4": "making the root file system",
    "format-esp": "making the EFI system partition",
    "init-sysroot": "making the sysroot",
    "mount-sysroot": "mounting the root",
    "mount-readonly": "mounting the root, read-only",
    "mount-delta": "mounting the delta disk",
    "mount-9p": "mounting the folder shared over 9p",
    "mount-virtiofs": "mounting the folder shared over virtiofs",
    "pull": "pulling the commit",
    "deploy": "deploying",
    "bootloader-bios": "installing GRUB for BIOS",
    "bootloader-uefi": "installing GRUB for UEFI",
    "rollback": "putting the former deployment first",
    "compact": "removing what nothing needs any more",
    "check": "checking the deployment",
    "customise": "setting hostname, accounts and files",
    "report": "reading what is on the disk",
    "finalise": "trimming, unmounting and checking",
    "fsck": "checking every object",
    "fsck-root": "checking the file system",
    "arm-verify": "preparing the boot under test",
}


def run_job(shell: Commands, job: Job, reporter: Reporter, deadline: Deadline) -> JobResult:
    """Run a job in a helper.

    Raises GuestStepFailed with the step and its reason; HelperDied, NoSpace and DeadlineExpired as the
    shell, with the step that was running.
    """
    answers = _Answers(reporter, _TITLES, job.steps)
    try:
        answer = shell.run(
            _RUN, stdin=_archive(job), on_stdout=answers.feed, deadline=deadline, silence=_SILENCE_SECONDS
        )
    except ComposerError as error:
        if answers.failed:
            raise answers.failed from error
        error.step = answers.running or None
        raise
    if answers.failed:
        raise answers.failed
    if answer.code != 0 or answers.values is None:
        said = answer.stderr.decode("utf-8", "replace").strip()
        raise GuestStepFailed(
            answers.running or "dispatch",
            f"the dispatcher ended with {answer.code}",
            detail=said[-2000:] or None,
        )
    return JobResult(answers.values, answers.seconds)
