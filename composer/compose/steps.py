"""Which steps make up a job, and the data that they read."""

from __future__ import annotations

from composer.helper.job import Job
from composer.plan import Account, Plan, ProductFile, Source
from composer.resources import bootstrap_file

# What GRUB needs to find the root, read ostree's entries and boot one; the rest of its modules would
# only cost time to copy.
_GRUB_MODULES = (
    "all_video boot cat configfile echo ext2 fat halt help linux loadenv ls minicmd normal part_gpt reboot "
    "search search_fs_uuid serial sleep syslinuxcfg terminal test true"
)


def build_steps(plan: Plan, pull: tuple[str, ...]) -> tuple[str, ...]:
    """Return the steps of a build; ``pull`` are those that bring the commit in."""
    uefi = plan.layout.number("esp") is not None
    bios = plan.layout.number("bios") is not None
    return (
        "partition",
        f"format-{plan.filesystem}",
        *(("format-esp",) if uefi else ()),
        "init-sysroot",
        *pull,
        "deploy",
        *(("bootloader-bios",) if bios else ()),
        *(("bootloader-uefi",) if uefi else ()),
        "customise",
        "check",
        "report",
        "finalise",
    )


INSPECT_STEPS = ("mount-readonly", "report")
FSCK_STEPS = (*INSPECT_STEPS, "fsck", "fsck-root")
ARM_STEPS = ("mount-sysroot", "report", "arm-verify", "finalise")


ROLLBACK_STEPS = ("mount-sysroot", "rollback", "check", "report", "finalise")


def update_steps(pull: tuple[str, ...], *, compact: bool = False) -> tuple[str, ...]:
    """Return the steps of an update; ``pull`` are those that bring the commit in."""
    return (
        "mount-sysroot",
        *pull,
        "deploy",
        *(("compact",) if compact else ()),
        "check",
        "report",
        "finalise",
    )


def partition_data(partitions: dict[str, int]) -> dict[str, bytes]:
    """Return where the steps find the partitions of the target."""
    return {f"partition-{role}": f"{number}\n".encode() for role, number in partitions.items()}


def source_data(source: Source) -> dict[str, bytes]:
    """Return what pull and deploy need to know."""
    data = {
        "ref": source.ref.encode(),
        "commit": source.commit.encode(),
        "stateroot": source.stateroot.encode(),
        "keep": str(source.keep).encode(),
    }
    if source.remote is not None:
        data["remote-name"] = source.remote.encode()
    return data


def partitions_of(plan: Plan) -> dict[str, int]:
    """Return the partition numbers by role."""
    return {part.role: number for number, part in enumerate(plan.layout.partitions, start=1)}


def build_job(plan: Plan, pull: tuple[str, ...], where: dict[str, bytes]) -> Job:
    """Return the job that makes a disk; ``where`` is what the steps ``pull`` need to know."""
    data = {
        **partition_data(partitions_of(plan)),
        **source_data(plan.source),
        **where,
        "layout": plan.layout.sfdisk_script().encode(),
        "kargs": "".join(f"{karg}\n" for karg in plan.kargs).encode(),
        "grub.cfg": bootstrap_file("grub.cfg").read_bytes(),
        "grub-modules": _GRUB_MODULES.encode(),
        **{f"uuid-{role}": uuid.encode() for role, uuid in plan.uuids},
    }
    if plan.remote_url is not None:
        data["remote-url"] = plan.remote_url.encode()
        data |= {f"gpg-keys/{number:04}": key for number, key in enumerate(plan.trust.gpg)}
        if plan.trust.ed25519:
            data["ed25519-keys"] = "".join(f"{key}\n" for key in plan.trust.ed25519).encode()
    if plan.hostname is not None:
        data["hostname"] = f"{plan.hostname}\n".encode()
    for index, account in enumerate(plan.accounts):
        data |= {f"users/{index:04}/{name}": value for name, value in _account_data(account).items()}
    for index, file in enumerate(plan.files):
        data |= {f"files/{index:04}/{name}": value for name, value in _file_data(file).items()}
    return Job(build_steps(plan, pull), data)


def _account_data(account: Account) -> dict[str, bytes]:
    data = {
        "name": account.name.encode(),
        "shell": account.shell.encode(),
        "groups": ",".join(account.groups).encode(),
    }
    if account.uid is not None:
        data["uid"] = str(account.uid).encode()
    if account.password_hash is not None:
        data["password-hash"] = account.password_hash.encode()
    if account.ssh_keys:
        data["ssh-keys"] = "".join(f"{key}\n" for key in account.ssh_keys).encode()
    return data


def _file_data(file: ProductFile) -> dict[str, bytes]:
    return {
        "path": file.path.encode(),
        "content": file.content,
        "mode": file.mode.encode(),
        "owner": file.owner.encode(),
        "group": file.group.encode(),
    }
