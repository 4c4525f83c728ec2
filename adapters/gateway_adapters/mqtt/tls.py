"""TLS of a listener: what it asks of clients, and who a client says it is."""

from __future__ import annotations

import ssl
from typing import Any

from gateway import server_tls
from gateway.config import ListenerConfig

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "require": ssl.CERT_REQUIRED}


def server_context(config: ListenerConfig) -> ssl.SSLContext:
    """TLS 1.2 and newer with the listener's certificate. Raises ConfigError naming the file at fault.

    To take renewed files a new context is made: one that lives keeps certificate authorities that were removed.
    """
    assert config.tls_cert is not None, "called for a listener without TLS"
    context = server_tls.server_context(config.tls_cert, config.tls_key)
    context.verify_mode = _VERIFY[config.client_certificates]
    if config.tls_client_ca is not None:
        server_tls.load_authorities(context, config.tls_client_ca, "certificate")
    if config.tls_client_crl is not None:
        server_tls.load_authorities(context, config.tls_client_crl, "revocation list")
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


def identity(ssl_object: Any) -> str | None:
    """The common name in a client's verified certificate; None without certificate, or with none or several names."""
    certificate = ssl_object.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 and names[0] and "\0" not in names[0] else None
