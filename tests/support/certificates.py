"""Certificates of a small authority of the tests' own, in files."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = dt.timedelta(hours=1)


class Authority:
    """An authority whose files are in one directory: ``<name>.pem`` and ``<name>.key`` for each certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key, expired=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(_pem(self.certificate))

    def issue(self, name: str, *, expired: bool = False) -> tuple[Path, Path]:
        """Certificate and key of this common name, good for 127.0.0.1 and localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, expired=expired)
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self.issued = certificate
        files = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        files[0].write_bytes(_pem(certificate))
        plain = serialization.NoEncryption()
        encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        files[1].write_bytes(encoded)
        files[1].chmod(0o600)
        return files

    def revoke(self, certificate: x509.Certificate) -> Path:
        """A revocation list with this one certificate."""
        now = dt.datetime.now(dt.UTC)
        revoked = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        revoked = revoked.revocation_date(now - HOUR)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - HOUR).next_update(now + HOUR).add_revoked_certificate(revoked.build())
        file = self._directory / "revoked.pem"
        file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return file

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool) -> x509.CertificateBuilder:
        until = dt.datetime.now(dt.UTC) + (-HOUR if expired else HOUR)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(until - 10 * HOUR).not_valid_after(until)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
