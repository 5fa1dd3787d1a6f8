"""A helper VM for one job: started, reached, and ended with the block that asked for it.

It boots from cold, or it is a clone of a template (template.py): a machine that booted before, whose
memory is mapped and whose state is loaded.
"""

from __future__ import annotations

import re
import secrets
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from composer.deadline import Deadline
from composer.errors import ComposerError, ShellFailed, TemplateUnusable
from composer.helper import seed, shell
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import DEBUG_PORT, SSH_PORT, Channel, DirectKernel, Disk, Domain, Ram, Share
from composer.helper.hypervisor import Host, LibvirtMachine
from composer.helper.keys import RunKeys
from composer.helper.machine import BOOT_SECONDS, Abilities, Machine
from composer.helper.seed import Seed
from composer.helper.shell import Commands, Shell
from composer.helper.template import Template
from composer.resources import bootstrap_file
from composer.store.runs import Run

# mitigations=off: the helper runs one job of one owner, and under emulation each barrier costs.
# panic=-1 reboots at once, which ends the domain, so that a panic is noticed without a wait.
_ARGUMENTS = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off 8250.nr_uarts=1"
# libvirt gives QEMU whole mebibytes, and the memory file must be as large.
_MIB = 2**20
# A clone answers within a second, but took more than 15 where eight started at once on two slow cores.  One
# that has not by then is given up for a cold boot.
_CLONE_SECONDS = {"kvm": 5.0, "qemu": 45.0}
# A clock is as wrong as it took to set it.
_LATE_SECONDS = 0.4
_CLOCK_LIMIT = 60.0


@dataclass(frozen=True)
class HelperShape:
    """How large a helper is, ``memory`` in bytes, and which folder of the host it can mount, if any."""

    memory: int
    cpus: int
    share: Share | None = None


@dataclass(frozen=True)
class Helper:
    """A running helper VM with a shell in it."""

    machine: Machine
    shell: Shell
    run: Run


def helper_domain(image: BootstrapImage, abilities: Abilities, shape: HelperShape, run: Run) -> Domain:
    """Describe the VM of a helper, for one start."""
    # libvirt forgets a name, and removes its sockets, some time after the machine has ended; the next
    # machine of the run is not to wait for that.
    tag = secrets.token_hex(2)
    return Domain(
        name=f"{run.name}-{tag}",
        kind=abilities.kind,
        emulator=abilities.emulator,
        machine=abilities.machine,
        cpu_mode=abilities.cpu_mode,
        memory=-(-shape.memory // _MIB) * _MIB,
        cpus=shape.cpus,
        console=run.console,
        kernel=DirectKernel(image.vmlinuz, image.initramfs, _ARGUMENTS),
        disks=(Disk(image.root, "raw", "composer-root", "sda", readonly=True),),
        channels=(
            Channel(SSH_PORT, run.path / f"ssh.{tag}"),
            Channel(DEBUG_PORT, run.path / f"debug.{tag}"),
        ),
        share=shape.share,
        generation=str(uuid.uuid4()),
    )


def _new_keys(run: Run, domain: Domain) -> RunKeys:
    """Make the keys of a machine and leave them, and its other port, where `composer vm ssh` finds them."""
    keys = RunKeys.generate()
    keys.leave(run.path / "key")
    (run.path / "debug").unlink(missing_ok=True)
    (run.path / "debug").symlink_to(domain.socket(DEBUG_PORT).name)
    return keys


@contextmanager
def cold_helper(host: Host, domain: Domain, run: Run, deadline: Deadline) -> Iterator[Helper]:
    """Boot a helper and yield it once its shell answers; it has ended when the block has."""
    keys = _new_keys(run, domain)
    boot = deadline.sooner(BOOT_SECONDS[domain.kind])
    with host.start(domain) as machine, shell.dialled(domain.socket(SSH_PORT), boot) as line:
        seed.plant(line, Seed("boot", run.name, keys), machine, boot)
        with shell.opened(line, keys, machine, boot) as channel:
            yield Helper(machine, channel, run)


@dataclass(frozen=True)
class Clone:
    """A clone of a template: loaded and paused, until somebody wakes it."""

    machine: LibvirtMachine
    line: socket.socket
    run: Run
    domain: Domain

    @contextmanager
    def woken(self, deadline: Deadline) -> Iterator[Helper]:
        """Let it run and yield the helper once its shell answers; errors as in `loaded_clone`."""
        soon = deadline.sooner(_CLONE_SECONDS[self.domain.kind])
        with ExitStack() as stack:
            with _template_blamed():
                keys = _new_keys(self.run, self.domain)
                self.machine.resume()
                began = time.monotonic()
                seed.plant(self.line, Seed("clone", self.run.name, keys), self.machine, soon)
                late = time.monotonic() - began > _LATE_SECONDS
                channel = stack.enter_context(shell.opened(self.line, keys, self.machine, soon))
                if late:
                    _set_clock(channel, deadline.sooner(_CLOCK_LIMIT))
            yield Helper(self.machine, channel, self.run)


def _set_clock(channel: Commands, deadline: Deadline) -> None:
    """Set a guest's clock again, on a host so busy that the seed's time was old when it was read.

    What a guest says takes a while to get here, never less than nothing: the quickest of several lines
    tells when its boot was.  Raises ShellFailed where its clock cannot be set.
    """
    script = bootstrap_file("guest/clock").read_bytes()
    boots: list[float] = []

    def heard(said: bytes) -> None:
        now = time.time()
        # Of several lines that came together the last is the newest.
        found = re.findall(rb"(?<![0-9])([0-9]{1,12})\n", said)
        boots.extend(now - int(uptime) / 1000 for uptime in found[-1:])

    channel.run(["/bin/sh", "-s", "ticks"], stdin=script, on_stdout=heard, deadline=deadline)
    if not boots:
        raise ShellFailed("the helper does not tell the time since its boot")
    argv = ["/bin/sh", "-s", "set", str(round(min(boots) * 1000))]
    answer = channel.run(argv, stdin=script, deadline=deadline)
    if answer.code != 0:
        said = answer.stderr.decode("utf-8", "replace").strip()
        raise ShellFailed("the helper's clock cannot be set", detail=said[-2000:] or None)


@contextmanager
def loaded_clone(
    host: Host, domain: Domain, template: Template, run: Run, deadline: Deadline
) -> Iterator[Clone]:
    """Clone a template, not running yet; the machine has ended when the block has.

    Raises TemplateUnusable where that does not work; nothing of the clone is left then.
    """
    soon = deadline.sooner(_CLONE_SECONDS[domain.kind])
    clone = replace(domain, ram=Ram(template.ram, clone=True))
    with ExitStack() as stack:
        with _template_blamed():
            template.check()
            machine = stack.enter_context(host.start(clone))
            # Before the state is loaded, so that its port finds the other end as it was: open.
            line = stack.enter_context(shell.dialled(domain.socket(SSH_PORT), soon))
            machine.load(template.state, soon)
            template.count_use()
        yield Clone(machine, line, run, domain)


@contextmanager
def warm_helper(
    host: Host, domain: Domain, template: Template, run: Run, deadline: Deadline
) -> Iterator[Helper]:
    """Clone a template and yield the helper once its shell answers; errors as in `loaded_clone`."""
    with loaded_clone(host, domain, template, run, deadline) as clone, clone.woken(deadline) as helper:
        yield helper


@contextmanager
def _template_blamed() -> Iterator[None]:
    try:
        yield
    except TemplateUnusable:
        raise
    except ComposerError as error:
        raise TemplateUnusable(f"the template cannot be used: {error.message}") from error
    except OSError as error:  # removed meanwhile, by gc or by hand
        raise TemplateUnusable(f"the template cannot be read: {error.strerror}") from error


def keep(helper: Helper, deadline: Deadline) -> None:
    """Have the helper outlive its job, for a user who wants to look into it."""
    answer = helper.shell.run(["touch", "/run/composer/keep"], deadline=deadline)
    if answer.code != 0:
        raise ComposerError("the helper could not be told to stay")
    helper.machine.keep()
    helper.run.keep()
