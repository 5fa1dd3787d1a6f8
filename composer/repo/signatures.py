"""What a commit must prove before anything is made of it: signatures by the keys that a recipe names.

It is checked on the host.  The helper that pulls a commit is as a rule made of that very commit, so a forged
one could bring a forged ostree along, which finds everything in order.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from composer.deadline import Deadline
from composer.errors import NotTrusted, ToolFailed
from composer.repo.local import Repo

# ostree-sign-ed25519.c: detached metadata, an array of signatures over the commit object's bytes.
_KEY = "ostree.sign.ed25519"
# GVariant's text form of 64 bytes is a list of numbers, or a byte string where a zero is the last of them and
# no other is (g_variant_print_string in gvariant.c), as with every sixteenth signature; in it are the escapes
# of g_strescape, which are Python's too.
_NUMBERS = re.compile(r"\[(?:byte )?((?:0x[0-9a-f]{2}(?:, )?){64})\]")
_ESCAPED = r"\\[0-3][0-7]{2}|\\[bfnrtv\\\"]"
_STRING = re.compile(rf"b'(?:[ !#-&(-\[\]-~]|{_ESCAPED})*'|b\"(?:[ !#-\[\]-~]|{_ESCAPED})*\"")


@dataclass(frozen=True)
class Trust:
    """The keys of which one of each kind must have signed; kinds without keys are not asked for.

    ``gpg`` are keyrings as `gpg --export` writes them, ``ed25519`` base64 of 32 bytes each.  With
    ``require_binding`` a commit must also name the ref that it was made for.
    """

    gpg: tuple[bytes, ...] = ()
    ed25519: tuple[str, ...] = ()
    require_binding: bool = False

    @property
    def digest(self) -> str:
        """What tells one set of keys from another."""
        whole = hashlib.sha256()
        for key in (*self.gpg, b"", *(key.encode() for key in self.ed25519)):
            whole.update(hashlib.sha256(key).digest())
        if self.require_binding:
            whole.update(b"bound")
        return whole.hexdigest()


def check_binding(repo: Repo, commit: str, ref: str, deadline: Deadline) -> None:
    """Raise NotTrusted if a commit in ``repo`` does not say that it was made for ``ref``.

    ostree itself refuses a commit that names other refs, and takes one that names none for any.
    """
    try:
        said = repo.ostree("show", "--print-metadata-key=ostree.ref-binding", commit, deadline=deadline)
    except ToolFailed as error:
        raise NotTrusted(f"commit {commit[:12]} is bound to no ref, and the recipe requires that") from error
    if f"'{ref}'" not in said:
        raise NotTrusted(f"commit {commit[:12]} is not bound to {ref}, and the recipe requires that")


def check_ed25519(repo: Repo, commit: str, keys: Iterable[str], deadline: Deadline) -> None:
    """Raise NotTrusted where no signature of a commit in ``repo`` is by one of the keys.

    Our own check: Debian 12's ostree is built without libsodium and knows no ed25519.
    """
    try:
        said = repo.ostree("show", f"--print-detached-metadata-key={_KEY}", commit, deadline=deadline)
    except ToolFailed as error:
        raise NotTrusted(
            f"commit {commit[:12]} has no ed25519 signature, and the recipe names keys"
        ) from error
    signed = repo.object_path(f"{commit}.commit").read_bytes()
    for signature in _signatures(said):
        for key in keys:
            try:
                Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, signed)
            except InvalidSignature:
                continue
            return
    raise NotTrusted(f"no ed25519 signature of commit {commit[:12]} is by a key that the recipe names")


def _signatures(said: str) -> Iterator[bytes]:
    """Yield what may be a signature in GVariant's text form of an array of them."""
    for numbers in _NUMBERS.findall(said):
        yield bytes(int(number, 16) for number in numbers.split(", "))
    for string in _STRING.findall(said):
        yield ast.literal_eval(string) + b"\0"
