"""Proving who one is: SASL PLAIN (RFC 4616) and SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side. No I/O.

Channel binding is not offered; over TLS the certificate says who the gateway is. Names and passwords are compared as
they come, without the mapping of SASLprep (RFC 4013), which changes nothing in ASCII.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Protocol

from gateway.kafka import wire
from gateway.serve.kafka.users import Credentials, Users

MESSAGE_BYTES_MAX = 8_192
_NONCE_BYTES = 18


class Refused(Exception):
    """Who it is has not been proved. The text says no more than a stranger may know."""


class Exchange(Protocol):
    """One attempt."""

    user: str
    done: bool

    def step(self, message: bytes) -> bytes:
        """The answer to a message of the client's. Takes milliseconds. Raises Refused."""
        ...


def begin(mechanism: str, users: Users) -> Exchange:
    """An attempt by one of the two."""
    return PlainExchange(users) if mechanism == wire.PLAIN else ScramExchange(users)


class PlainExchange:
    """The password itself. Only for connections on which nobody else can read it."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self.user = ""
        self.done = False

    def step(self, message: bytes) -> bytes:
        """``[authzid] NUL name NUL password``."""
        parts = _text(message).split("\0")
        if len(parts) != 3 or not parts[1] or parts[0] not in ("", parts[1]):
            raise Refused("the PLAIN message is not a name and a password")
        self.user = parts[1]
        credentials, known = self._users.find(self.user)
        if not credentials.matches(parts[2]) or not known:
            raise Refused("name or password is wrong")
        self.done = True
        return b""


class ScramExchange:
    """The client proves that it knows the password, and the server that it knows the user."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self.user = ""
        self.done = False
        self._known = False
        self._credentials: Credentials | None = None
        self._nonce = self._binding = self._messages = ""

    def step(self, message: bytes) -> bytes:
        text = _text(message)
        return self._first(text) if self._credentials is None else self._final(text, self._credentials)

    def _first(self, text: str) -> bytes:
        """``n,[a=…],n=name,r=nonce[,extensions]``"""
        flag, _, rest = text.partition(",")
        authzid, _, bare = rest.partition(",")
        fields = _fields(bare)
        if flag not in ("n", "y") or list(fields)[:2] != ["n", "r"] or not fields["r"]:
            raise Refused("the first SCRAM message is not understood")
        self.user = fields["n"].replace("=2C", ",").replace("=3D", "=")
        if authzid not in ("", f"a={fields['n']}"):
            raise Refused("it wants to act for somebody else")
        self._credentials, self._known = self._users.find(self.user)
        self._nonce = fields["r"] + secrets.token_urlsafe(_NONCE_BYTES)
        self._binding = base64.b64encode(f"{flag},{authzid},".encode()).decode()
        salt = base64.b64encode(self._credentials.salt).decode()
        answer = f"r={self._nonce},s={salt},i={self._credentials.iterations}"
        self._messages = f"{bare},{answer}"
        return answer.encode()

    def _final(self, text: str, credentials: Credentials) -> bytes:
        """``c=binding,r=nonce,p=proof``"""
        without_proof, _, proof = text.rpartition(",p=")
        fields = _fields(without_proof)
        if self.done or fields.get("c") != self._binding or fields.get("r") != self._nonce:
            raise Refused("the last SCRAM message does not belong to the first")
        signed = f"{self._messages},{without_proof}".encode()
        try:
            given = base64.b64decode(proof, validate=True)
        except ValueError:  # binascii.Error, and another one for what is not ASCII
            raise Refused("the SCRAM proof is not Base64") from None
        signature = hmac.digest(credentials.stored_key, signed, "sha256")
        client_key = bytes(one ^ other for one, other in zip(given, signature, strict=False))
        matches = hmac.compare_digest(hashlib.sha256(client_key).digest(), credentials.stored_key)
        if not matches or not self._known or len(given) != len(signature):
            raise Refused("name or password is wrong")
        self.done = True
        verifier = hmac.digest(credentials.server_key, signed, "sha256")
        return b"v=" + base64.b64encode(verifier)


def _text(message: bytes) -> str:
    if len(message) > MESSAGE_BYTES_MAX:
        raise Refused(f"a SASL message of more than {MESSAGE_BYTES_MAX} bytes")
    try:
        return message.decode()
    except UnicodeDecodeError:
        raise Refused("the SASL message is not UTF-8 text") from None


def _fields(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)
