"""What a VM is made of, and its libvirt XML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from composer.resources import bootstrap_file

SSH_PORT = "composer.ssh"
DEBUG_PORT = "composer.debug"


@dataclass(frozen=True)
class DirectKernel:
    """A kernel that QEMU loads itself, without a bootloader."""

    vmlinuz: Path
    initramfs: Path
    arguments: str


@dataclass(frozen=True)
class Uefi:
    """OVMF: its code, shared, and this machine's own variables."""

    code: Path
    variables: Path


@dataclass(frozen=True)
class Backing:
    """The file below an overlay, and what is below that: libvirt opens what it is told, no more."""

    path: Path
    format: str
    below: Backing | None = None


def layers(backing: Backing | None) -> Iterator[Backing]:
    """Yield the files below an overlay, nearest first."""
    while backing is not None:
        yield backing
        backing = backing.below


@dataclass(frozen=True)
class Disk:
    """A disk of a VM.

    ``serial`` is how the guest finds it, 20 characters at most (QEMU cuts the rest for SCSI).
    ``cache`` 'unsafe' ignores the guest's flushes: for files that nobody keeps if the job fails.
    """

    path: Path
    format: str
    serial: str
    device: str
    readonly: bool = False
    cache: str = "unsafe"
    boot: bool = False
    backing: Backing | None = None


@dataclass(frozen=True)
class Channel:
    """A virtio-serial port with a unix socket on the host."""

    name: str
    socket: Path


@dataclass(frozen=True)
class Share:
    """A folder of the host that a VM can mount by its ``tag``; ``kind`` is '9p' or 'virtiofs'."""

    folder: Path
    tag: str
    kind: str


@dataclass(frozen=True)
class Ram:
    """The file that is a VM's memory.

    The VM of a template writes into it (``clone`` is False); a clone maps it, keeps what it writes to
    itself, and waits for the template's state before it runs.
    """

    path: Path
    clone: bool


@dataclass(frozen=True)
class Domain:
    """A whole VM; ``memory`` is in bytes.

    ``generation`` is what tells a guest's kernel that it is a copy and must draw fresh randomness
    (ACPI's VM generation ID): another UUID for each VM.  ``account`` is whom root's QEMU becomes before the
    guest runs.
    """

    name: str
    kind: str
    emulator: str
    machine: str
    cpu_mode: str
    memory: int
    cpus: int
    console: Path
    kernel: DirectKernel | None = None
    uefi: Uefi | None = None
    disks: tuple[Disk, ...] = ()
    channels: tuple[Channel, ...] = ()
    share: Share | None = None
    report: Path | None = None
    screen: bool = False
    generation: str | None = None
    ram: Ram | None = None
    account: str | None = None

    def socket(self, port: str) -> Path:
        """Return the socket of one of its channels."""
        return next(channel.socket for channel in self.channels if channel.name == port)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(bootstrap_file(".")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_escaped,
    )


def _escaped(value: object) -> object:
    """Escape also what XML would fold into a blank in an attribute: another file would be named."""
    if isinstance(value, Markup) or not isinstance(value, str | Path):
        return value
    text = escape(str(value))
    for character in "\n\r\t":
        text = text.replace(character, Markup(f"&#{ord(character)};"))  # noqa: S704
    return text


def disk_xml(disk: Disk) -> Markup:
    """Return the XML of one disk, as it is attached to a running machine."""
    # Rendered with autoescape, so it may stand in the domain's XML as it is.
    return Markup(_environment().get_template("disk.xml.j2").render(disk=disk).strip())  # noqa: S704


def _ram_object(domain: Domain) -> str:
    """Return QEMU's description of the memory file, as JSON: a path may hold commas."""
    assert domain.ram is not None
    described = {
        "qom-type": "memory-backend-file",
        "id": "composer.ram",
        "mem-path": str(domain.ram.path),
        "size": domain.memory,
        "share": not domain.ram.clone,
    }
    return json.dumps(described)


def domain_xml(domain: Domain) -> str:
    """Return the XML of a VM."""
    template = _environment().get_template("domain.xml.j2")
    return template.render(domain=domain, disk_xml=disk_xml, ram_object=_ram_object)
