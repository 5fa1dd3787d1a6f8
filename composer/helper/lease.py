"""A helper VM for one job: started, reached, and ended with the block that asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from composer.deadline import Deadline
from composer.errors import ComposerError
from composer.helper import shell
from composer.helper.bootstrap import BootstrapImage
from composer.helper.domain import DEBUG_PORT, SSH_PORT, Channel, DirectKernel, Disk, Domain
from composer.helper.initramfs import Cpio
from composer.helper.keys import RunKeys
from composer.helper.machine import Abilities, Host, Machine
from composer.helper.shell import Shell
from composer.resources import bootstrap_file
from composer.store.runs import Run

# mitigations=off: the helper runs one job of one owner, and under emulation each barrier costs.
# panic=-1 reboots at once, which ends the domain, so that a panic is noticed without a wait.
_ARGUMENTS = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off net.ifnames=0 8250.nr_uarts=1"
_BOOT_SECONDS = {"kvm": 30.0, "qemu": 90.0}


@dataclass(frozen=True)
class HelperShape:
    """How large a helper is; ``memory`` in bytes.  Only one that pulls has a network."""

    memory: int
    cpus: int
    network: bool = False


@dataclass(frozen=True)
class Helper:
    """A running helper VM with a shell in it."""

    machine: Machine
    shell: Shell
    run: Run


def _seed(keys: RunKeys) -> bytes:
    """Return the cpio archive with the keys of one run, to be appended to the initramfs."""
    archive = Cpio()
    archive.folder("seed", 0o700)
    archive.file("seed/host_key", keys.host.private.encode(), 0o600)
    archive.file("seed/authorized_keys", f"{keys.user.public}\n".encode(), 0o600)
    archive.file("seed/sshd_config", bootstrap_file("sshd_config").read_bytes(), 0o600)
    return archive.bytes()


def helper_domain(
    name: str, image: BootstrapImage, abilities: Abilities, shape: HelperShape, run: Run, initramfs_name: str
) -> Domain:
    """Describe the VM of a helper."""
    return Domain(
        name=name,
        kind=abilities.kind,
        emulator=abilities.emulator,
        machine=abilities.machine,
        cpu_mode=abilities.cpu_mode,
        memory=shape.memory,
        cpus=shape.cpus,
        console=run.console,
        kernel=DirectKernel(image.vmlinuz, run.path / initramfs_name, _ARGUMENTS),
        disks=(Disk(image.root, "raw", "composer-root", "sda", readonly=True),),
        channels=(
            Channel(SSH_PORT, run.path / "ssh"),
            Channel(DEBUG_PORT, run.path / "debug"),
        ),
        network=shape.network,
    )


@contextmanager
def cold_helper(
    host: Host,
    image: BootstrapImage,
    abilities: Abilities,
    shape: HelperShape,
    run: Run,
    deadline: Deadline,
) -> Iterator[Helper]:
    """Boot a helper and yield it once its shell answers; it has ended when the block has."""
    keys = RunKeys.generate()
    initramfs = run.path / "initramfs"
    initramfs.touch(mode=0o600)
    initramfs.write_bytes(image.initramfs.read_bytes() + _seed(keys))
    (run.path / "key").touch(mode=0o600)
    (run.path / "key").write_text(f"{keys.user.private}{keys.host.public}\n")
    domain = helper_domain(run.name, image, abilities, shape, run, initramfs.name)
    boot = deadline.sooner(_BOOT_SECONDS[abilities.kind])
    with host.start(domain) as machine, shell.opened(run.path / "ssh", keys, machine, boot) as channel:
        yield Helper(machine, channel, run)


def keep(helper: Helper, deadline: Deadline) -> None:
    """Have the helper outlive its job, for a user who wants to look into it."""
    answer = helper.shell.run(["touch", "/run/composer/keep"], deadline=deadline)
    if answer.code != 0:
        raise ComposerError("the helper could not be told to stay")
    helper.machine.keep()
    helper.run.keep()
