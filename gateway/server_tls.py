"""TLS of what the gateway serves: certificates as files, and sentences for what is wrong with them."""

from __future__ import annotations

import ssl
from pathlib import Path

from gateway.errors import ConfigError


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """TLS 1.2 and newer with that certificate; its key may stand in the same file. Asks for no client certificates.

    Raises ConfigError naming the file at fault. To take renewed files a new context is made: one that lives keeps
    certificate authorities that were removed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _load_certificate(context, certificate, key or certificate)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for file in (certificate, key):
        _readable(file)
    try:
        # Without this an encrypted key would ask for its password at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key}: is not the key of the certificate in {certificate}.") from None
        raise ConfigError(
            f"{certificate} and {key}: cannot be used as certificate and key ({error.reason or 'unknown format'}); "
            "both must be PEM, the key without a password."
        ) from None


def load_authorities(context: ssl.SSLContext, file: Path, what: str) -> None:
    """Whose client certificates are good, or a revocation list: `what` says which. Raises ConfigError."""
    _readable(file)
    before = context.cert_store_stats()
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise ConfigError(f"{file}: holds no {what} in PEM ({error.reason or 'unknown format'}).") from None
    kind = "crl" if what == "revocation list" else "x509"
    if context.cert_store_stats()[kind] == before[kind]:
        raise ConfigError(f"{file}: holds no {what} in PEM.")


def _readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}.") from None
