"""A certificate authority of the tests' own, for TLS on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """It issues certificates into a folder; ``path`` is its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = generate_private_key(SECP256R1())
        own = self._sign("ca", self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.path = folder / "ca.pem"
        self.path.write_bytes(own.public_bytes(Encoding.PEM))

    def _sign(
        self, name: str, key: EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=_name("ca"),
            subject_name=_name(name),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - _DAY,
            not_valid_after=now + _DAY,
        )
        return builder.add_extension(extension, critical=True).sign(self._key, SHA256())

    def issue(self, address: str) -> tuple[Path, Path]:
        """Return a certificate of an address, and its key."""
        key = generate_private_key(SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate, private = self._folder / f"{address}.pem", self._folder / f"{address}.key"
        certificate.write_bytes(self._sign(address, key, names).public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, private

    def server(self, certificate: Path, key: Path) -> ssl.SSLContext:
        """Return how a server is reached that lets in whom the authority vouches for."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.path))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        return context
