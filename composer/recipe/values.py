"""The kinds of values that stand in recipes, each with the rule that it keeps."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"^([0-9]{1,12}) ?(KiB|MiB|GiB|TiB)?$")
_SIZE_PATTERN = r"^[0-9]{1,12} ?(KiB|MiB|GiB|TiB)?$"

# Kernel arguments pass through the bootloader's own configuration language, which has quotes, variables
# and separators; what means something there is refused rather than escaped.
_KARG = re.compile(r"^[A-Za-z0-9_.,:=/@%+~^\[\]-]+$")


def parse_size(value: Any) -> int:
    """Return a size in bytes from '4 GiB' or a plain number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a size is a text such as '4 GiB', or a number of bytes")
    found = _SIZE.fullmatch(str(value))
    if not found:
        raise ValueError(f"{value!r} is no size; write it like '512 MiB' or '4 GiB'")
    return int(found[1]) * _UNITS[found[2] or ""]


def show_size(size: int) -> str:
    """Return a size as people write it, in the largest unit that keeps it short."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def _check_karg(value: str) -> str:
    if not _KARG.fullmatch(value):
        raise ValueError("a kernel argument is made of letters, digits and _.,:=/@%+~^[]- alone")
    return value


def _check_product_path(value: str) -> str:
    parts = value.split("/")
    if not value.startswith("/") or "" in parts[1:] or {".", ".."} & set(parts):
        raise ValueError("write an absolute path without '.', '..' or doubled slashes")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("a path has no control characters")
    if parts[1] not in ("etc", "var") or len(parts) < 3:
        raise ValueError("a deployment can be changed below /etc and /var alone; the rest is the commit's")
    return value


def _check_mode(value: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3,4}", value):
        raise ValueError("write a mode in octal, such as '0644'")
    return value


def check_ssh_key(value: str) -> str:
    """Return an OpenSSH public key without blanks around it; ValueError if it is none."""
    text = value.strip()
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key; give the public one, the file that ends in .pub")
    # authorized_keys(5): options, key type, key, comment; one line.
    if "\n" in text or not re.search(r"(^|\s)(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ AAAA[0-9A-Za-z+/=]+", text):
        raise ValueError("no OpenSSH public key; it looks like 'ssh-ed25519 AAAA... name'")
    return text


def _check_not_zero(value: str) -> str:
    if not value.strip("0-"):
        raise ValueError("zeros alone stand for no identifier at all")
    return value


def host_behind_login(url: str) -> str | None:
    """Return the host of a URL that has a user's name or password in it; None for any other."""
    _, login, host = url.partition("://")[2].partition("/")[0].rpartition("@")
    return host if login else None


def _check_address(value: str) -> str:
    if host_behind_login(value) is not None:
        raise ValueError(
            "a URL has no user's name or password, which others could read; ~/.netrc is for them"
        )
    return value


def _check_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text has no NUL characters")
    return value


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": _SIZE_PATTERN}, {"type": "integer", "minimum": 0}]}
    ),
]
# ostree-core.h, OSTREE_REF_REGEXP, without parts that begin with a dot
Ref = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][-._A-Za-z0-9]*(/[A-Za-z0-9_][-._A-Za-z0-9]*)*$", max_length=255)
]
RepoPlace = Annotated[
    str, AfterValidator(_check_address), AfterValidator(_check_text), Field(min_length=1, max_length=4096)
]
Stateroot = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][-._A-Za-z0-9]*$", max_length=64)]
RemoteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", max_length=64)]
Url = Annotated[
    str, AfterValidator(_check_address), Field(pattern=r"^(https?|file)://[!-~]+$", max_length=2048)
]
Karg = Annotated[str, AfterValidator(_check_karg), Field(max_length=1024)]
# hostname(7)
Hostname = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9]{0,62})(\.[A-Za-z0-9][-A-Za-z0-9]{0,62})*$", max_length=64)
]
# useradd(8): 32 characters at most
Login = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$", max_length=32)]
# crypt(5): no colon, which separates the fields of /etc/shadow
PasswordHash = Annotated[str, Field(pattern=r"^\$[a-z0-9]+\$[./A-Za-z0-9$=,]+$", max_length=384)]
Shell = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]+$", max_length=255)]
SshKey = Annotated[str, AfterValidator(check_ssh_key)]
# ostree-sign-ed25519.c: a public key is 32 bytes, in base64
Ed25519Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
# ext4 takes any but that of zeros, which stands for none (mke2fs(8), -U).
Uuid = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
    AfterValidator(_check_not_zero),
]
# As blkid shows it (mkfs.vfat(8), -i).
FatId = Annotated[str, Field(pattern=r"^[0-9A-F]{4}-[0-9A-F]{4}$"), AfterValidator(_check_not_zero)]
ProductPath = Annotated[str, AfterValidator(_check_product_path), Field(max_length=1024)]
Mode = Annotated[str, AfterValidator(_check_mode)]
# ostree-core.h, OSTREE_SHA256_STRING_LEN
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# PATH_MAX of linux/limits.h; any character but NUL may stand in a name.
HostPath = Annotated[str, AfterValidator(_check_text), Field(min_length=1, max_length=4096)]
Text = Annotated[str, AfterValidator(_check_text)]
