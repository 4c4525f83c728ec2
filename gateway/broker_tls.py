"""TLS towards a broker, for whoever is its client: subscribers and the control plane."""

from __future__ import annotations

import ssl

from gateway.config import BrokerConfig
from gateway.errors import SourceError


def broker_tls(config: BrokerConfig, owner: str) -> ssl.SSLContext | None:
    """None for mqtt://. Raises SourceError, which names the owner, when the files cannot be used."""
    if not config.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        if config.tls_cert is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            f"the TLS files cannot be used ({getattr(error, 'reason', None) or error.strerror or error}); check "
            "tls_ca, tls_cert and tls_key.",
            source=owner,
        ) from error
    return context
