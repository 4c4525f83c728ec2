"""TLS of a listener: certificates as files, sentences for what is wrong with them, and who a client says it is."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from gateway.config import ListenerConfig
from gateway.errors import ConfigError

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "require": ssl.CERT_REQUIRED}


def server_context(config: ListenerConfig) -> ssl.SSLContext:
    """TLS 1.2 and newer with the listener's certificate. Raises ConfigError naming the file at fault.

    To take renewed files a new context is made: one that lives keeps certificate authorities that were removed.
    """
    assert config.tls_cert is not None, "called for a listener without TLS"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _load_certificate(context, config.tls_cert, config.tls_key or config.tls_cert)
    context.verify_mode = _VERIFY[config.client_certificates]
    if config.tls_client_ca is not None:
        _load_authorities(context, config.tls_client_ca, "certificate")
    if config.tls_client_crl is not None:
        _load_authorities(context, config.tls_client_crl, "revocation list")
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


def identity(ssl_object: Any) -> str | None:
    """The common name in a client's verified certificate; None without certificate, or with none or several names."""
    certificate = ssl_object.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 and names[0] and "\0" not in names[0] else None


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


def _load_authorities(context: ssl.SSLContext, file: Path, what: str) -> None:
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
