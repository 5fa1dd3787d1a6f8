"""Keys and signatures for tests: what a compose server does with its commits."""

from __future__ import annotations

import ctypes
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_FAKED_TIME = "20200101T000000"
_AGENT_SECONDS = 10.0


@dataclass(frozen=True)
class Gpg:
    """A GPG home with one key; an expired one was good for a day in 2020."""

    home: Path
    expired: bool = False

    def make(self) -> Gpg:
        """Make the key."""
        self.home.mkdir(mode=0o700)
        until = "1d" if self.expired else "never"
        argv = ["--batch", "--passphrase", "", "--quick-gen-key", "Tester <t@example.org>", "ed25519", "sign"]
        self._gpg(*argv, until)
        return self

    def _gpg(self, *argv: str) -> bytes:
        fake = ["--faked-system-time", _FAKED_TIME] if self.expired else []
        command = ["gpg", "--homedir", str(self.home), "--quiet", *fake, *argv]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def public(self) -> bytes:
        """Return the public key, as `gpg --export` writes it."""
        return self._gpg("--export")

    def sign(self, repo: Path, commit: str) -> None:
        """Sign a commit."""
        listed = self._gpg("--list-keys", "--with-colons").decode()
        key = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        if self.expired:
            # ostree signs with the time of today, and gpg does not sign with a key that has expired.
            (self.home / "gpg.conf").write_text(f"faked-system-time {_FAKED_TIME}\n")
        argv = ["ostree", f"--repo={repo}", "gpg-sign", f"--gpg-homedir={self.home}", commit, key]
        subprocess.run(argv, check=True, capture_output=True)

    def end(self) -> None:
        """End the agent that gpg started for the home."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=True)
        # It has been told by now, and removes its sockets at its end; who removes the home must not meet it.
        began = time.monotonic()
        while list(self.home.glob("S.*")) and time.monotonic() - began < _AGENT_SECONDS:
            time.sleep(0.02)


def sign_ed25519(repo: Path, commit: str, *keys: Ed25519PrivateKey) -> None:
    """Sign a commit as ostree does where it is built with libsodium; Debian 12's is not."""
    folder = repo / "objects" / commit[:2]
    signed = (folder / f"{commit[2:]}.commit").read_bytes()
    signatures = [", ".join(f"byte 0x{number:02x}" for number in key.sign(signed)) for key in keys]
    meta = folder / f"{commit[2:]}.commitmeta"
    meta.unlink(missing_ok=True)  # it may be a hard link of another repo's
    meta.write_bytes(_variant(f"{{'ostree.sign.ed25519': <[[{'], ['.join(signatures)}]]>}}"))


def _variant(text: str) -> bytes:
    """Return a GVariant of the type a{sv}, serialised, from its text form."""
    glib = ctypes.CDLL("libglib-2.0.so.0")
    for name, result, arguments in (
        ("g_variant_type_new", ctypes.c_void_p, [ctypes.c_char_p]),
        ("g_variant_parse", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 3]),
        ("g_variant_get_size", ctypes.c_size_t, [ctypes.c_void_p]),
        ("g_variant_get_data", ctypes.c_void_p, [ctypes.c_void_p]),
    ):
        function = getattr(glib, name)
        function.restype, function.argtypes = result, arguments
    value = glib.g_variant_parse(glib.g_variant_type_new(b"a{sv}"), text.encode(), None, None, None)
    assert value, "no valid text form"
    return ctypes.string_at(glib.g_variant_get_data(value), glib.g_variant_get_size(value))
