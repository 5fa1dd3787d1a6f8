"""The keys of one run: made for it, known to both sides before the first connect, gone with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key in OpenSSH's form; ``private`` never goes into logs or argv."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new key."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return cls(private.decode(), public.decode())


@dataclass(frozen=True)
class RunKeys:
    """The guest's host key and the composer's own."""

    host: KeyPair
    user: KeyPair

    @classmethod
    def generate(cls) -> RunKeys:
        """Make both."""
        return cls(KeyPair.generate(), KeyPair.generate())

    def leave(self, path: Path) -> None:
        """Write down what another composer of the same user needs to reach the guest; for its eyes alone."""
        path.touch(mode=0o600)
        path.write_text(f"{self.user.private}{self.host.public}\n")

    @classmethod
    def found(cls, path: Path) -> RunKeys:
        """Read what `leave` wrote: the host key's public half and the user key's private one."""
        private, end, public = path.read_text().rpartition("-----\n")
        return cls(KeyPair("", public.strip()), KeyPair(private + end, ""))
