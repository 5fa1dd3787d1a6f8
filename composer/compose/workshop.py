"""What every job needs around it: folders, a reporter, a deadline, and helpers on demand."""

from __future__ import annotations

import os
import pwd
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from composer.compose.source import RepoSource, opened_source
from composer.deadline import Deadline
from composer.disk.inuse import check_unused
from composer.disk.manifest import Identity, check_folders_of_root, load_manifest, settle
from composer.errors import (
    FREE_ROOM,
    BadInput,
    Busy,
    ComposerError,
    DeadlineExpired,
    GuestStepFailed,
    NoSpace,
    NotTrusted,
    ShellFailed,
    TemplateUnusable,
    told_by_system,
)
from composer.events import Reporter
from composer.helper import hypervisor, lease, probe
from composer.helper.bootstrap import BootstrapImage, build_bootstrap, cache_of
from composer.helper.hypervisor import Host
from composer.helper.job import check_tools
from composer.helper.lease import Clone, Helper, HelperShape
from composer.helper.machine import Abilities, console_tail, tells_cause
from composer.helper.pool import Pool, Wake
from composer.helper.template import Template, find_template, inputs_of, make_template
from composer.helper.template import cache_of as templates_of
from composer.recipe.values import show_size
from composer.repo.local import COMMIT, Repo
from composer.repo.signatures import Trust
from composer.repo.upstream import Tls
from composer.store.folders import Folders, check_utf8, is_full
from composer.store.runs import Run, Runs
from composer.store.seen import Seen, SeenCommit
from composer.store.work import Work, working_on

# Whom root's QEMU becomes before a guest runs; scripts/setup makes it.
ACCOUNT = "composer-helper"
_NOT_CLONABLE = (
    "the helper's kernel has no driver for VM generation IDs (CONFIG_VMGENID), "
    "so clones of it would draw the same randomness"
)


@dataclass(frozen=True)
class Options:
    """What the command line sets for any job; ``timeout`` in seconds for the whole of it."""

    connect: str = hypervisor.EMBEDDED
    accelerator: str = "auto"
    timeout: float = 3600.0
    keep_vm: bool = False
    debug_shell: bool = False
    cold: bool = False
    transport: str = "auto"
    wait: bool = False
    paranoid: bool = False
    as_root: bool = False
    trust_folder: bool = False


@dataclass(frozen=True)
class Bench:
    """A place to work in during one job: libvirt, the accelerator, a folder that goes away."""

    run: Run
    host: Host
    image: BootstrapImage
    abilities: Abilities

    @property
    def accelerator(self) -> str:
        """'KVM' or 'TCG'."""
        return "KVM" if self.abilities.kind == "kvm" else "TCG"


@dataclass(frozen=True)
class Workshop:
    """What every job needs; ``logs`` keeps the console of a job that failed."""

    folders: Folders
    reporter: Reporter
    options: Options
    deadline: Deadline

    @property
    def logs(self) -> Path:
        """Where the consoles of failed jobs stay."""
        return self.folders.cache / "logs"

    def source(self, named: str, folder: Path, trust: Trust, tls: Tls) -> AbstractContextManager[RepoSource]:
        """Open the repo that a recipe or a manifest names; a folder is relative to ``folder``."""
        return opened_source(named, folder, self.folders.cache, trust, tls, self.deadline)

    def fetch(self, source: RepoSource, ref: str, commit: str) -> Repo:
        """Bring a commit into the composer's own repo, verified."""
        with self.reporter.phase("fetch", "verifying the commit"):
            return source.fetch(ref, commit)

    def account(self) -> str | None:
        """Return whom root's QEMU is to become before a guest runs; None for other users and by --as-root.

        Raises BadInput if root has no such account and did not say so.
        """
        if os.geteuid() != 0 or self.options.as_root or self.options.connect != hypervisor.EMBEDDED:
            return None
        try:
            pwd.getpwnam(ACCOUNT)
        except KeyError:
            raise BadInput(
                f"root's helpers run as the account {ACCOUNT}, and there is none",
                hint=f"useradd --system --no-create-home --shell /usr/sbin/nologin {ACCOUNT}   makes it; "
                "--as-root   runs them as root",
            ) from None
        return ACCOUNT

    def remember(self, source: RepoSource, ref: str, commit: str, *, allow_downgrade: bool) -> None:
        """Note a fetched commit as the newest of its ref; NotTrusted if a newer one is noted already.

        A commit that is named by its checksum is older or newer than nothing.
        """
        made = source.timestamp(commit)
        if COMMIT.match(ref) or made is None:
            return
        seen = Seen(self.folders.state / "seen")
        newest = seen.newest(source.named, ref)
        if newest is not None and newest.timestamp > made and not allow_downgrade:
            days = (newest.timestamp - made) / 86400
            raise NotTrusted(
                f"{ref} names commit {commit[:12]}, which is older than {newest.commit[:12]}, "
                f"which it named before, by {days:.1f} days",
                hint="--allow-downgrade   if that is meant",
            )
        seen.note(source.named, ref, SeenCommit(commit, made))

    def bootstrap(self, repo: Repo, commit: str, steps: tuple[str, ...]) -> BootstrapImage:
        """Return the bootstrap image of a commit, made now if need be, with all that the steps need."""
        began = time.monotonic()
        self.reporter.started("bootstrap", "making the bootstrap image")
        image = build_bootstrap(cache_of(self.folders.cache), repo, commit, self.deadline)
        check_tools(steps, image)
        self.reporter.ended("bootstrap", time.monotonic() - began, how="made" if image.fresh else "cached")
        return image

    @contextmanager
    def work(self, disk: Path, verb: str) -> Iterator[Work]:
        """Hold the lock of a disk for the block; Busy, at once unless --wait was given, where it is taken."""
        check_utf8(disk)
        # What root lacks, or may not do, is told before anything is made.
        self.account()
        if os.geteuid() == 0 and not self.options.trust_folder:
            check_folders_of_root(disk.parent)
        wait = self.deadline if self.options.wait else None
        # Once for the lock itself, and once for what holds of the disk when we have it.
        with told_of(disk), working_on(disk, self.folders, verb, wait) as work, told_of(disk):
            settle(disk)
            yield work

    def check_free(self, disk: Path, *, readers: bool = True) -> None:
        """End helpers whose composers are gone, and raise Busy where another VM has the disk open.

        One that reads it, as the base of another disk, counts with ``readers``.
        """
        self._clear_leftovers()
        check_unused(disk, readers=readers)

    def _clear_leftovers(self) -> None:
        for name in Runs.of(self.folders).clear_leftovers():
            self.reporter.note("leftovers", f"cleared the helper {name}, whose composer is gone")

    @contextmanager
    def folder(self, work: Work, *, replaces: bool = True) -> Iterator[Path]:
        """Yield a folder beside a disk, for what may take its place or, without ``replaces``, stand on it.

        Busy where a VM has the disk open.
        """
        self.check_free(work.disk, readers=replaces)
        with work.folder() as folder, full_disk_told(work.disk.parent):
            yield folder

    @contextmanager
    def bench(self, purpose: str, image: BootstrapImage, work: Work | None = None) -> Iterator[Bench]:
        """Yield a place to work in; whatever ran there has ended when the block has.

        The lock of ``work`` is held as long as anything runs there.
        """
        self._clear_leftovers()
        with ExitStack() as stack:
            run = stack.enter_context(Runs.of(self.folders).open(purpose, (work.lock,) if work else ()))
            run.describe(purpose, self.options.connect)
            stack.enter_context(self._console_kept(run))
            # Where libvirt has no room for what it learns of QEMU, it says that there is none.
            with full_disk_told(self.folders.runs, self.folders.cache):
                host = stack.enter_context(
                    hypervisor.connected(
                        self.options.connect,
                        self.folders.runs,
                        self.folders.cache / "libvirt",
                        self.account(),
                    )
                )
                abilities, verdict = probe.choose(
                    host, image, self.folders.cache, run.path, self.options.accelerator
                )
            if abilities.kind != "kvm" and self.options.accelerator == "auto":
                self.reporter.warn(
                    "accelerator",
                    "no KVM, using TCG, which is slow and isolates a hostile guest less well "
                    f"(docs/safety.md): {verdict.reason}",
                )
            yield Bench(run, host, image, abilities)

    @contextmanager
    def helper(self, bench: Bench, shape: HelperShape, *, warming: bool = False) -> Iterator[Helper]:
        """Yield a running helper; on failure it is kept or opened for the user if that was asked for.

        It is a clone of a template, else booted from cold.  With ``warming``, a template that is missing
        is made first, for this job and all that come.
        """
        with ExitStack() as stack:
            template = self._template(bench, shape, warming)
            with self.reporter.phase("helper", f"starting the helper VM ({bench.accelerator})"):
                wake = stack.enter_context(self._prepared(bench, shape, bench.run, template))
                helper = stack.enter_context(wake())
            try:
                yield helper
            except ComposerError:
                self._offer(helper)
                raise

    @contextmanager
    def pool(self, bench: Bench, shape: HelperShape, spares: int) -> Iterator[Pool]:
        """Yield a pool of helpers, for a batch of jobs."""
        template = self._template(bench, shape, warming=True)

        def prepare(name: str) -> AbstractContextManager[Wake]:
            return self._prepared(bench, shape, bench.run.part(name), template)

        with Pool(prepare, spares) as pool:
            yield pool

    def warm(self, bench: Bench, shape: HelperShape) -> Template:
        """Return the template of a helper, made now where there is none.

        Raises TemplateUnusable where the helper's kernel does not allow clones.
        """
        if not bench.image.clonable:
            raise TemplateUnusable(_NOT_CLONABLE)
        domain = lease.helper_domain(bench.image, bench.abilities, shape, bench.run)
        inputs = inputs_of(domain, bench.image.entry.key, bench.host)
        cache = templates_of(self.folders.cache)
        try:
            find_template(cache, inputs)
        except TemplateUnusable:
            check_room(self.folders.cache, shape.memory, "a template of the helper")
        with self.reporter.phase("template", "making the template of the helper, if there is none"):
            return make_template(cache, inputs, bench.host, domain, bench.run, self.deadline)

    def _template(self, bench: Bench, shape: HelperShape, warming: bool) -> Template | None:
        """Return the template to clone; None, with a line that says why, where there is none."""
        if self.options.cold:
            return None
        if not bench.image.clonable and not warming:
            self._cold_instead(TemplateUnusable(_NOT_CLONABLE))
            return None
        if shape.share is not None:
            self.reporter.note("template", "booting the helper from cold: it shares a folder from its start")
            return None
        try:
            if warming:
                return self.warm(bench, shape)
            domain = lease.helper_domain(bench.image, bench.abilities, shape, bench.run)
            inputs = inputs_of(domain, bench.image.entry.key, bench.host)
            return find_template(templates_of(self.folders.cache), inputs)
        # What keeps a template from being made, or read, need not keep us from booting.
        except (ComposerError, OSError, ValueError) as error:
            self._cold_instead(error)
            return None

    def _cold_instead(self, error: Exception) -> None:
        hint = error.hint if isinstance(error, ComposerError) else None
        way_out = f"; {hint}" if hint else ""
        self.reporter.warn("template", f"booting the helper from cold: {error}{way_out}")

    @contextmanager
    def _prepared(
        self, bench: Bench, shape: HelperShape, run: Run, template: Template | None
    ) -> Iterator[Wake]:
        """Yield what makes a helper when it is called: of a loaded clone, or by a cold boot without one."""
        with ExitStack() as prepared:
            clone: Clone | None = None
            # A clone that does not wake ends before another helper boots in its place.
            of_clone = prepared.enter_context(ExitStack())
            if template is not None:
                domain = lease.helper_domain(bench.image, bench.abilities, shape, run)
                try:
                    clone = of_clone.enter_context(
                        lease.loaded_clone(bench.host, domain, template, run, self.deadline)
                    )
                except TemplateUnusable as error:
                    self._cold_instead(error)

            @contextmanager
            def wake() -> Iterator[Helper]:
                with ExitStack() as lifetime:
                    helper: Helper | None = None
                    if clone is not None:
                        try:
                            helper = lifetime.enter_context(clone.woken(self.deadline))
                        except TemplateUnusable as error:
                            of_clone.close()
                            self._cold_instead(error)
                    if helper is None:
                        domain = lease.helper_domain(bench.image, bench.abilities, shape, run)
                        booting = lease.cold_helper(bench.host, domain, run, self.deadline)
                        helper = lifetime.enter_context(booting)
                    yield helper

            yield wake

    def _offer(self, helper: Helper) -> None:
        if not helper.machine.running():
            return
        try:
            if self.options.debug_shell:
                self.reporter.note("debug", "a shell in the helper; the job's files are in /run/composer/job")
                helper.shell.interact()
            if self.options.keep_vm:
                lease.keep(helper, Deadline.after(10))
                self.reporter.note("debug", f"the helper stays: composer vm ssh {helper.run.name}")
        except (ComposerError, OSError) as error:  # the job's own error is the one to be told
            self.reporter.note("debug", f"the helper cannot be looked into: {error}")

    @contextmanager
    def _console_kept(self, run: Run) -> Iterator[None]:
        """Have the console of a failed job outlive the job's folder."""
        try:
            yield
        except ComposerError as error:
            tail = console_tail(run.console)
            if _is_cut_off(error) or (isinstance(error, GuestStepFailed) and tells_cause(tail)):
                said = (error.detail or "").splitlines()
                error.detail = "\n".join([*said, "the console's last lines:", *tail.splitlines()])
            if error.log is None and run.console.exists():
                log = self.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{run.name}.console.log"
                with suppress(OSError):  # the job's own error is the one to be told
                    self.logs.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(run.console, log)
                    error.log = log
            raise


def _is_cut_off(error: ComposerError) -> bool:
    """Whether a step, or the way to it, did not end by itself, so that the guest's kernel may know why."""
    killed = isinstance(error, GuestStepFailed) and error.killed
    return killed or isinstance(error, ShellFailed | DeadlineExpired)


@contextmanager
def full_disk_told(*folders: Path) -> Iterator[None]:
    """Have a failure on a full host file system say so: inside, QEMU and the guest see odd errors."""
    try:
        yield
    except (ComposerError, OSError) as error:
        full = next((folder for folder in folders if is_full(folder)), None)
        if full is None:
            raise
        raise NoSpace(
            f"no space left in {full}",
            hint=f"df -h {full.parent}   tells what there is; then the same command again",
            detail=str(error),
            log=getattr(error, "log", None),
            step=getattr(error, "step", None),
        ) from error


@contextmanager
def told_of(disk: Path) -> Iterator[None]:
    """Have errors say what state the disk is in."""
    before = Identity.found(disk)

    def state() -> str:
        if before == (now := Identity.found(disk)):
            return f"{disk} is as it was before" if before else f"there is no {disk}, as before"
        with suppress(BadInput):
            if now and (manifest := load_manifest(disk)) and manifest.disk == now:
                return f"{disk} is the new one"
        return f"{disk} was {'written to' if now else 'taken away'} by another program meanwhile"

    try:
        yield
    except ComposerError as error:
        # Who is refused knows nothing of what its holder does to the disk.
        if error.disk is None and not isinstance(error, BadInput | Busy):
            error.disk = state()
        raise
    except OSError as error:
        told = told_by_system(error)
        told.disk = state()
        raise told from error


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise BadInput where a file system has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"{folder} has {show_size(free)} free; {what} needs {show_size(needed)}",
            hint=FREE_ROOM,
        )
