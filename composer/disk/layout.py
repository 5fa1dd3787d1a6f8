"""How a product disk is divided."""

from __future__ import annotations

from dataclasses import dataclass

# Partition types by the UEFI specification and the Discoverable Partitions Specification.
_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_NO_AUTO = "GUID:63"

_MIB = 2**20
# FAT32 wants 65,525 clusters; at 512 bytes each that is 32 MiB.  64 leaves room for what vendors add.
_ESP_BYTES = 64 * _MIB
_EDGES = 2 * _MIB  # the table and its copy at the end, aligned


@dataclass(frozen=True)
class Partition:
    """One partition; ``size`` in bytes, None for all that is left."""

    role: str
    type: str
    size: int | None


@dataclass(frozen=True)
class Layout:
    """A GPT with its partitions in order."""

    partitions: tuple[Partition, ...]

    @classmethod
    def for_firmware(cls, firmware: str) -> Layout:
        """Return the layout for 'bios', 'uefi' or 'bios+uefi'."""
        parts = []
        if "bios" in firmware:
            parts.append(Partition("bios", _BIOS_BOOT, _MIB))
        if "uefi" in firmware:
            parts.append(Partition("esp", _ESP, _ESP_BYTES))
        return cls((*parts, Partition("root", _ROOT_X86_64, None)))

    def number(self, role: str) -> int | None:
        """Return the number of a partition, counted from 1, or None where the layout has it not."""
        roles = [partition.role for partition in self.partitions]
        return roles.index(role) + 1 if role in roles else None

    @property
    def overhead(self) -> int:
        """The bytes of a disk that are not the root file system's."""
        return _EDGES + sum(partition.size or 0 for partition in self.partitions)

    def sfdisk_script(self) -> str:
        """Return the table as sfdisk(8) reads it; sfdisk chooses fresh UUIDs for disk and partitions."""
        lines = ["label: gpt"]
        for partition in self.partitions:
            size = f"size={partition.size // _MIB}MiB, " if partition.size else ""
            # The ESP is not to be mounted by systemd-gpt-auto-generator, which would take /boot for it.
            attributes = f', attrs="{_NO_AUTO}"' if partition.role == "esp" else ""
            lines.append(f'{size}type={partition.type}, name="{partition.role}"{attributes}')
        return "\n".join(lines) + "\n"


def room_needed(content_bytes: int, boot_bytes: int, deployments: int) -> int:
    """Return how large a root file system must be for a commit.

    Files once for all deployments (they are hard links), a second time the tenth part that an update
    may bring, kernel and initramfs in /boot for each deployment and one more while an update runs, 8 %
    for ext4's own tables and reserve, and OSTree's min-free-space of 3 % (ostree.repo-config(5)).
    """
    files = content_bytes * 11 // 10 + boot_bytes * (deployments + 1)
    return int(files / (1 - 0.08 - 0.03)) + 64 * _MIB
