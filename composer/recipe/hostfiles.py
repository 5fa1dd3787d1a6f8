"""The host files that a recipe names: which of them it may name, and what is read of them.

A recipe is not trusted with the files of who runs it.  Below its own folder it may name any regular file.
Elsewhere it may name what is public by its form (SSH and OpenPGP public keys, certificates), and what the
user allows by `--allow-file`.  Files of the kernel (/proc, /sys, /dev) have no business in a product.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from composer.errors import BadInput, Fault
from composer.recipe.model import File, Tls, User, Verify
from composer.recipe.values import check_ssh_key
from composer.store.files import open_regular, read_open

_LARGEST_SOURCE = 2**26
_LARGEST_OF_ALL = 2**27
# They go into each disk's manifest.
_LARGEST_KEYRINGS = 2**21
_LARGEST_PEM = 2**20
_OF_THE_KERNEL = ("/proc", "/sys", "/dev")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# RFC 4880, 4.3: packets of a transferable public key: keys, user ids, attributes, signatures, trust, marker.
_PUBLIC_KEY, _PUBLIC_PACKETS = 6, {2, 6, 10, 12, 13, 14, 17}


@dataclass(frozen=True)
class HostFile:
    """A host file that a recipe names: by which key, where it really lies, and its size in bytes."""

    key: str
    path: Path
    bytes: int


def host_path(text: str, folder: Path) -> Path:
    """Return a path as a recipe writes it: relative to ``folder``, or with ~; BadInput for no path."""
    if "\0" in text:
        raise BadInput(f"{text!r} is no path")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{text!r} names the home of nobody here") from error
    return Path(os.path.normpath(folder / path))


class HostFiles:
    """Reads the host files that a recipe names, and gathers what is wrong with them.

    ``folder`` is the recipe's; files of ``allowed`` are read wherever they lie.
    """

    def __init__(self, folder: Path, allowed: Collection[Path] = ()) -> None:
        self._folder = folder
        self._allowed = {path.resolve() for path in allowed}
        self.faults: list[Fault] = []
        self.read: list[HostFile] = []
        self._left = _LARGEST_OF_ALL

    def _read(
        self,
        name: str,
        key: str,
        largest: int = _LARGEST_SOURCE,
        is_public: Callable[[bytes], bool] = lambda _: False,
    ) -> bytes | None:
        try:
            path = host_path(name, self._folder)
            # Before it is opened: to open a device may do something (watchdog(4), st(4)).
            if _is_below_the_kernels(path.resolve()):
                self.faults.append(Fault(key, f"a file of the kernel: {path}"))
                return None
            descriptor = open_regular(path, links=True)
        except FileNotFoundError:
            self.faults.append(Fault(key, f"no such file: {path}"))
            return None
        except BadInput as error:
            self.faults.append(Fault(key, error.message))
            return None
        try:
            # Where it lies once all links are followed; of the file that was opened, whatever happens since.
            lies = Path(f"/proc/self/fd/{descriptor}").readlink()
            if _is_of_the_kernel(descriptor, lies):
                self.faults.append(Fault(key, f"a file of the kernel: {path}"))
                return None
            raw = read_open(descriptor, path, min(largest, self._left))
            self._left -= len(raw)
        except BadInput as error:
            self.faults.append(Fault(key, error.message))
            return None
        finally:
            os.close(descriptor)
        inside = lies.is_relative_to(self._folder.resolve())
        if not (inside or lies in self._allowed or is_public(raw)):
            why = f"outside the recipe's folder: {path}; --allow-file {path} allows it"
            self.faults.append(Fault(key, why))
            return None
        self.read.append(HostFile(key, lies, len(raw)))
        return raw

    def content(self, file: File, index: int) -> bytes:
        """Return what goes into ``file``."""
        if file.source is None:
            return (file.content or "").encode()
        return self._read(file.source, f"files[{index}].source") or b""

    def gpg_keys(self, verify: Verify | None) -> tuple[bytes, ...]:
        """Return the keyrings that commits are verified with."""
        keys = []
        for number, name in enumerate(verify.gpg_keys if verify else ()):
            key = f"ostree.verify.gpg_keys[{number}]"
            raw = self._read(name, key, _LARGEST_KEYRINGS, _is_public_keyring)
            # An OpenPGP packet has its highest bit set (RFC 4880, 4.2); otherwise it is ASCII armour.
            if raw is not None and not (raw[:1] >= b"\x80" or b"BEGIN PGP PUBLIC KEY BLOCK" in raw[:4096]):
                self.faults.append(Fault(key, f"no OpenPGP public key: {name}; gpg --export NAME makes one"))
            keys.append(raw or b"")
        if sum(map(len, keys)) > _LARGEST_KEYRINGS:
            self.faults.append(Fault("ostree.verify.gpg_keys", "together they are larger than 2 MiB"))
        return tuple(keys)

    def check_tls(self, tls: Tls | None) -> None:
        """See whether the files of the client certificate can be read, and may be."""
        for name in ("certificate", "key", "ca"):
            path = getattr(tls, name, None)
            if path is not None:
                is_public = _is_certificate if name != "key" else lambda _: False
                self._read(path, f"ostree.tls.{name}", _LARGEST_PEM, is_public)

    def ssh_keys(self, user: User, index: int) -> tuple[str, ...]:
        """Return all public keys of ``user``."""
        keys = list(user.ssh_keys)
        for number, name in enumerate(user.ssh_key_files):
            key = f"users[{index}].ssh_key_files[{number}]"
            # What is no public key is a fault wherever it lies, so none of it needs to be allowed.
            raw = self._read(name, key, _LARGEST_PEM, lambda _: True) or b""
            try:
                keys += _ssh_keys_of(raw)
            except ValueError as error:
                self.faults.append(Fault(key, str(error)))
        return tuple(keys)


def _ssh_keys_of(raw: bytes) -> list[str]:
    """Return the public keys of a file, one a line; ValueError if a line is none."""
    lines = raw.decode("utf-8", "replace").splitlines()
    return [check_ssh_key(line) for line in lines if line.strip() and not line.startswith("#")]


def _is_of_the_kernel(descriptor: int, lies: Path) -> bool:
    """Whether a file is one of /proc, /sys or /dev, also where these are mounted elsewhere."""
    mounted = [Path(place).stat().st_dev for place in _OF_THE_KERNEL if Path(place).is_mount()]
    return os.fstat(descriptor).st_dev in mounted or _is_below_the_kernels(lies)


def _is_below_the_kernels(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _OF_THE_KERNEL)


def _is_certificate(raw: bytes) -> bool:
    """Whether a PEM file holds certificates, and no private key beside them."""
    text = raw.decode("ascii", "replace")
    found = _CERTIFICATE.findall(text)
    try:
        for certificate in found:
            ssl.PEM_cert_to_DER_cert(certificate)
    except ValueError:
        return False
    return bool(found) and "PRIVATE" not in text


def _is_public_keyring(raw: bytes) -> bool:
    """Whether a file is an OpenPGP public key, in armour or as packets of which none is secret."""
    if raw.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return b"PRIVATE" not in raw
    tags = _packet_tags(raw)
    return tags is not None and tags[:1] == [_PUBLIC_KEY] and set(tags) <= _PUBLIC_PACKETS


def _packet_tags(raw: bytes) -> list[int] | None:
    """Return the tags of a row of OpenPGP packets (RFC 4880, 4.2); None if it is no such row."""
    tags: list[int] = []
    position = 0
    while position < len(raw):
        head, body = raw[position], raw[position + 1 : position + 6]
        if not head & 0x80 or not body:
            return None
        if head & 0x40:
            tags.append(head & 0x3F)
            first = body[0]
            if first < 192:
                size, length = 1, first
            elif first < 224:
                size, length = 2, ((first - 192) << 8) + int.from_bytes(body[1:2], "big") + 192
            elif first == 255:
                size, length = 5, int.from_bytes(body[1:5], "big")
            else:  # partial lengths are for messages
                return None
        else:
            tags.append(head >> 2 & 0x0F)
            if head & 3 == 3:
                return None
            size = 1 << (head & 3)
            length = int.from_bytes(body[:size], "big")
        position += 1 + size + length
    return tags if position == len(raw) else None
