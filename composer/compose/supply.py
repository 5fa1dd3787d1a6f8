"""The commit's way into a helper, for one job: chosen before the helper starts, opened once it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from composer.compose.progress import pull_watched
from composer.compose.source import RepoSource
from composer.compose.workshop import Workshop
from composer.errors import ComposerError
from composer.export import delta
from composer.export.choice import Choice, Transport, choose
from composer.export.delta import Delta, Wanted, delta_disk, shared_folder
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import Disk, Share
from composer.helper.hypervisor import EMBEDDED
from composer.helper.lease import Helper
from composer.process import has_tool
from composer.repo.local import Repo

# bootstrap/guest/steps/mount-*.sh look for these, and mount there.
_SERIAL, _TAG = "composer-delta", "composer-repo"
_DEVICE = "sdc"
_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
_STALL_SECONDS = b"600"
_MOUNTED = "file:///run/composer/export"
PULL_STEPS: dict[Transport, tuple[str, ...]] = {
    "delta": ("mount-delta", "pull"),
    "9p": ("mount-9p", "pull"),
    "virtiofs": ("mount-virtiofs", "pull"),
    "http": ("pull",),
}


@dataclass
class Moved:
    """What a helper was given."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Supply:
    """An open way: ``steps`` bring the commit in, and ``share`` has to be there when the helper starts."""

    choice: Choice
    source: RepoSource
    made: Delta | None
    share: Share | None
    moved: Moved = field(default_factory=Moved)

    @property
    def steps(self) -> tuple[str, ...]:
        """The guest's steps that pull."""
        return PULL_STEPS[self.choice.transport]

    @contextmanager
    def reaching(self, helper: Helper, workshop: Workshop) -> Iterator[dict[str, bytes]]:
        """Make the repo reachable from a running helper for the block; yield what the steps need to know."""
        if self.choice.transport != "http":
            if self.made is not None:
                disk = Disk(self.made.image, "raw", _SERIAL, _DEVICE, readonly=True)
                helper.machine.attach(disk)
            yield {"export-url": _MOUNTED.encode()}
            return
        with (
            self.source.exported() as export,
            helper.shell.listening(export.serve, workshop.deadline) as port,
            pull_watched(export, workshop.reporter),
            _untold(export.token),
        ):
            # What comes from a URL is fetched before its first byte goes on, and meanwhile the guest has
            # nothing to do.
            slow = {"stall-limit": _STALL_SECONDS} if self.source.through else {}
            yield {"export-url": export.url_at(port).encode(), **slow}
            self.moved.objects, self.moved.bytes = export.served.files, export.served.bytes


@contextmanager
def _untold(token: str) -> Iterator[None]:
    """Keep a token secret: what the guest's ostree says of a failed pull has the URL."""
    try:
        yield
    except ComposerError as error:
        error.without(token)
        raise


def obstacles(source: RepoSource, image: BootstrapImage, connect: str) -> dict[Transport, str]:
    """Return, for each transport that cannot work here, why."""
    found: dict[Transport, str] = {}
    if not has_tool("mke2fs"):
        found["delta"] = "the program mke2fs is not installed (apt install e2fsprogs)"
    if source.folder is not None and not source.folder.servable:
        found["http"] = f"the repo has mode {source.folder.mode!r}, not archive"
    modules: dict[Transport, str] = {"9p": "9pnet_virtio", "virtiofs": "virtiofs"}
    for transport, module in modules.items():
        if not image.has_module(module):
            found[transport] = f"the helper's kernel {image.entry.info['kernel']} has no {transport}"
        elif connect != EMBEDDED:
            found[transport] = "it shares a folder of this host, and --connect may name another"
    if "virtiofs" not in found and (reason := virtiofs_obstacle()):
        found["virtiofs"] = reason
    return found


def virtiofs_obstacle() -> str | None:
    """Return why this host cannot share a folder over virtiofs, or None where it can.

    libvirt starts virtiofsd for root alone (before 10.0: "virtiofs is not yet supported in session mode").
    """
    if not any(Path(path).exists() for path in _VIRTIOFSD):
        return "virtiofsd is not installed"
    if os.geteuid() != 0:
        return "libvirt runs virtiofsd for root alone"
    return None


@contextmanager
def opened_supply(
    workshop: Workshop, source: RepoSource, repo: Repo, wanted: Wanted, image: BootstrapImage, place: Path
) -> Iterator[Supply]:
    """Choose a transport for ``wanted`` and prepare it for the block; ``place`` is a folder to work in."""
    choice = choose(
        workshop.options.transport,
        obstacles(source, image, workshop.options.connect),
    )
    workshop.reporter.note("transport", f"transport {choice.transport}: {choice.why}")
    if choice.transport == "http":
        yield Supply(choice, source, None, None)
        return
    if choice.transport == "delta":
        with workshop.reporter.phase("delta", "making the delta disk"):
            made = delta_disk(
                delta.cache_of(workshop.folders.cache), repo, wanted, workshop.deadline, source.known
            )
        yield Supply(choice, source, made, None, Moved(made.objects, made.bytes))
        return
    # By its real path: virtiofsd, in a namespace of its own, sees no /proc of ours.
    with shared_folder(place.resolve(), repo, wanted, workshop.deadline, source.known) as folder:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        count = sum(1 for file in (folder / "objects").rglob("*") if file.is_file())
        share = Share(folder, _TAG, choice.transport)
        yield Supply(choice, source, None, share, Moved(count, size))
