"""What peers say, made fit for a log line."""

from __future__ import annotations

# What a peer calls itself is cut to this length: a client id may have 65,535 bytes.
SHOWN_CHARACTERS_MAX = 120


def shown(text: str) -> str:
    """Text from a peer for a log line: printable, on one line, not too long."""
    safe = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return safe if len(safe) <= SHOWN_CHARACTERS_MAX else f"{safe[:SHOWN_CHARACTERS_MAX]}…"
