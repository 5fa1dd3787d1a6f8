"""The recipe: every key that a recipe may have.  `composer recipe schema` prints it as JSON schema."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from composer.recipe.values import (
    Ed25519Key,
    FatId,
    Hostname,
    Karg,
    Login,
    Mode,
    PasswordHash,
    ProductPath,
    Ref,
    RemoteName,
    RepoPlace,
    Shell,
    Size,
    SshKey,
    Stateroot,
    Text,
    Url,
    Uuid,
)

Firmware = Literal["bios+uefi", "bios", "uefi"]


class _Table(BaseModel):
    """A table of the recipe: unknown keys are errors, types are not guessed, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Remote(_Table):
    """The remote written into the product, from which it upgrades itself in the field."""

    name: RemoteName = "origin"
    url: Url = Field(description="where the product pulls its upgrades from")


class Verify(_Table):
    """Whose signatures a commit must have: one of each kind that is named here."""

    gpg_keys: tuple[str, ...] = Field(
        default=(), strict=False, description="files with public keys (gpg --export), relative to the recipe"
    )
    ed25519_keys: tuple[Ed25519Key, ...] = Field(
        default=(), strict=False, description="public keys in base64, as `ostree sign` takes them"
    )
    require_binding: bool = Field(
        default=False, description="take no commit that does not name the ref it was made for"
    )

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not (self.gpg_keys or self.ed25519_keys):
            raise ValueError("name at least one key, or leave the table out")
        return self


class Tls(_Table):
    """How to reach an https repo: PEM files, relative to the recipe."""

    certificate: str | None = Field(default=None, description="the client certificate to show")
    key: str | None = Field(default=None, description="its private key, if that is another file")
    ca: str | None = Field(default=None, description="whose servers to believe, instead of the system's")

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("a key is of no use without its certificate")
        return self


class Ostree(_Table):
    """Which commit the disk carries."""

    repo: RepoPlace = Field(
        description="the OSTree repo: a folder, relative to the recipe, or an http(s) URL"
    )
    ref: Ref
    stateroot: Stateroot = "default"
    kargs: tuple[Karg, ...] = Field(default=(), strict=False, description="kernel arguments; root= is added")
    keep: int = Field(default=2, ge=1, le=10, description="deployments that an update leaves on the disk")
    remote: Remote | None = None
    verify: Verify | None = None
    tls: Tls | None = None


class Uuids(_Table):
    """Identifiers that all disks of a recipe share; each disk has its own where none is given."""

    root: Uuid | None = Field(default=None, description="of the root file system")
    esp: FatId | None = Field(default=None, description="of the EFI system partition, such as '1A2B-3C4D'")


class Disk(_Table):
    """The disk's size and what is on it."""

    size: Size = 4 * 2**30
    firmware: Firmware = "bios+uefi"
    filesystem: Literal["ext4"] = "ext4"
    uuids: Uuids = Uuids()

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if not 2**28 <= self.size <= 2**46:
            raise ValueError("a disk has between 256 MiB and 64 TiB")
        return self

    @model_validator(mode="after")
    def _check_esp(self) -> Self:
        if self.uuids.esp and "uefi" not in self.firmware:
            raise ValueError("uuids.esp is of a partition that a disk for BIOS alone has not")
        return self


class User(_Table):
    """An account of the product.  For root, which exists, only password and keys are set."""

    name: Login
    uid: int | None = Field(default=None, ge=1000, le=60000)
    groups: tuple[Login, ...] = Field(default=(), strict=False)
    shell: Shell = "/bin/bash"
    password_hash: PasswordHash | None = Field(default=None, description="as `mkpasswd` prints it")
    ssh_keys: tuple[SshKey, ...] = Field(default=(), strict=False)
    ssh_key_files: tuple[str, ...] = Field(
        default=(), strict=False, description="public keys, paths relative to the recipe"
    )

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        shell = type(self).model_fields["shell"].default
        if self.name == "root" and (self.uid is not None or self.groups or self.shell != shell):
            raise ValueError("root has uid, groups and shell already; give password_hash and ssh keys alone")
        return self


class File(_Table):
    """A file put into the product, below /etc or /var."""

    path: ProductPath
    content: Text | None = None
    source: str | None = Field(default=None, description="a host file, relative to the recipe")
    mode: Mode = "0644"
    owner: Login = "root"
    group: Login = "root"

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if (self.content is None) == (self.source is None):
            raise ValueError("give either content or source")
        return self


class System(_Table):
    """What is set in the product besides its commit."""

    hostname: Hostname | None = None


class Bootstrap(_Table):
    """The helper VM: by default it is made from the very commit that the disk gets."""

    ref: Ref | None = Field(default=None, description="another ref of the repo for the helper")
    memory: Size = 2**30
    cpus: int = Field(default=2, ge=1, le=64)

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if not 2**28 <= self.memory <= 2**40:
            raise ValueError("memory is between 256 MiB and 1 TiB")
        return self


class Output(_Table):
    """Where the disk goes."""

    path: str | None = Field(
        default=None, min_length=1, description="relative to the recipe; NAME.qcow2 if left out"
    )
    format: Literal["qcow2"] = "qcow2"
    flatten: Literal["auto", "always"] = Field(
        default="auto",
        description="after an update: auto keeps a disk that stands on a base file on it, always makes it "
        "stand alone",
    )


class Recipe(_Table):
    """A disk, described."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", max_length=64)]
    ostree: Ostree
    disk: Disk = Disk()
    system: System = System()
    users: tuple[User, ...] = Field(default=(), strict=False)
    files: tuple[File, ...] = Field(default=(), strict=False)
    bootstrap: Bootstrap = Bootstrap()
    output: Output = Output()
    variables: dict[str, str] = Field(
        default={}, description="defaults of what {{ name }} stands for; -D name=value overrides"
    )

    @model_validator(mode="after")
    def _check_doubles(self) -> Self:
        faults = []
        for what, names in (
            ("users", [user.name for user in self.users]),
            ("files", [file.path for file in self.files]),
        ):
            doubled = sorted(name for name, count in Counter(names).items() if count > 1)
            if doubled:
                faults.append(f"{what} given twice: {', '.join(doubled)}")
        if faults:
            raise ValueError("; ".join(faults))
        return self
