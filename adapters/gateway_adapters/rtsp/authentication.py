"""Basic and digest authentication of a client (RFC 7617, RFC 7616, and RFC 2617 as cameras of old have it). No I/O."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway_adapters.rtsp.failures import Failure, RemoteFault

CHALLENGES_MAX = 16
CHALLENGE_CHARACTERS_MAX = 8_192
# A camera that takes back every nonce at once would have us ask for ever.
STALE_MAX = 3

# Strongest first; the "-sess" forms hash the client's nonce into the user's part.
_HASHES = {"sha-256": hashlib.sha256, "md5": hashlib.md5}
_RANKS = {"sha-256": 4, "sha-256-sess": 3, "md5": 2, "md5-sess": 1}

# One item of a challenge header: a scheme, or a parameter. RFC 7235, section 2.1; values as cameras write them.
_ITEM = re.compile(
    r"""\s*,?\s*(?:
        (?P<name>[A-Za-z0-9_-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]*))
      | (?P<scheme>[A-Za-z0-9_-]+)(?=\s|,|$)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme that a camera accepts, with its parameters; names in lower case."""

    scheme: str
    parameters: dict[str, str]

    @property
    def algorithm(self) -> str:
        return self.parameters.get("algorithm", "MD5").lower()

    @property
    def stale(self) -> bool:
        """The answer was right but for its nonce, which had grown old."""
        return self.parameters.get("stale", "").lower() == "true"

    @property
    def qops(self) -> list[str]:
        """The qualities of protection on offer; empty: the camera is of RFC 2069."""
        return [each.strip().lower() for each in self.parameters.get("qop", "").split(",") if each.strip()]


def strength(challenge: Challenge) -> int:
    """How well an answer to it hides the password; 0: it cannot be answered."""
    if challenge.scheme == "basic":
        return 1
    if challenge.scheme != "digest" or not challenge.parameters.get("nonce"):
        return 0
    if challenge.qops and "auth" not in challenge.qops:
        return 0
    rank = _RANKS.get(challenge.algorithm, 0)
    return 1 + rank if rank else 0


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers; several may stand in one. Raises RemoteFault."""
    found: list[Challenge] = []
    for value in values:
        if len(value) > CHALLENGE_CHARACTERS_MAX:
            raise RemoteFault(f"the camera's challenge has over {CHALLENGE_CHARACTERS_MAX} characters")
        at = 0
        while (item := _ITEM.match(value, at)) is not None and item.end() > at:
            at = item.end()
            if item["scheme"]:
                found.append(Challenge(item["scheme"].lower(), {}))
            elif found:
                content = re.sub(r"\\(.)", r"\1", item["quoted"]) if item["quoted"] is not None else item["plain"]
                found[-1].parameters.setdefault(item["name"].lower(), content)
        if len(found) > CHALLENGES_MAX:
            raise RemoteFault(f"the camera offers over {CHALLENGES_MAX} ways to authenticate")
    return found


@dataclass
class Authenticator:
    """Answers one camera's challenges with one user's name and password.

    An answer goes to a camera only after it asked: nothing is sent unasked, and the password itself only where the
    camera offers nothing but basic authentication.
    """

    username: str | None
    password: str | None = field(repr=False)
    new_nonce: Callable[[], str] = field(default=lambda: secrets.token_hex(16), repr=False)
    _challenge: Challenge | None = field(default=None, repr=False)
    _count: int = 0
    _stale: int = 0
    _client_nonce: str = field(default="", repr=False)

    @property
    def scheme(self) -> str:
        """What is in use: "", "basic", "digest MD5"…"""
        if self._challenge is None:
            return ""
        if self._challenge.scheme == "basic":
            return "basic"
        return f"digest {self._challenge.algorithm.upper()}"

    def challenged(self, values: Iterable[str], *, answered: bool) -> None:
        """The camera said 401. answered: to a request that carried an answer. Raises Failure when it is no use."""
        challenges = parse_challenges(values)
        best = max(challenges, key=strength, default=None)
        if best is None or strength(best) == 0:
            raise Failure("unauthorized", _unanswerable(challenges))
        if self.username is None:
            raise Failure("unauthorized", "the camera wants a user name and password (401)")
        if not self.username.isprintable():
            raise Failure("unauthorized", "the configured user name has characters that cannot be sent")
        if answered and not (best.stale or self._is_of_another_kind(best)):
            raise Failure("unauthorized", "the camera refuses the user name or password (401)")
        if answered:
            self._stale += 1
            if self._stale > STALE_MAX:
                raise Failure("unauthorized", "the camera calls every answer stale (401)")
        self._challenge, self._count, self._client_nonce = best, 0, self.new_nonce()

    def accepted(self) -> None:
        """The camera took the answer."""
        self._stale = 0

    def _is_of_another_kind(self, best: Challenge) -> bool:
        """Was the last answer to another scheme or algorithm than is asked for now?"""
        known = self._challenge
        return known is None or (known.scheme, known.algorithm) != (best.scheme, best.algorithm)

    def header(self, method: str, url: str) -> str | None:
        """The value of Authorization for this request; None before the first challenge."""
        challenge = self._challenge
        if challenge is None or self.username is None:
            return None
        if challenge.scheme == "basic":
            return "Basic " + base64.b64encode(f"{self.username}:{self.password or ''}".encode()).decode()
        self._count += 1
        return self._digest(challenge, self.username, method, url)

    def _digest(self, challenge: Challenge, username: str, method: str, url: str) -> str:
        """RFC 7616, section 3.4; without qop as RFC 2069 has it."""
        given = challenge.parameters
        realm, nonce = given.get("realm", ""), given["nonce"]
        name = challenge.algorithm.removesuffix("-sess")
        is_session = name != challenge.algorithm
        user = _hash(name, f"{username}:{realm}:{self.password or ''}")
        if is_session:
            user = _hash(name, f"{user}:{nonce}:{self._client_nonce}")
        asked = _hash(name, f"{method}:{url}")
        parts = [("username", username), ("realm", realm), ("nonce", nonce), ("uri", url)]
        if challenge.qops:
            middle = f"{nonce}:{self._count:08x}:{self._client_nonce}:auth"
            parts.append(("response", _hash(name, f"{user}:{middle}:{asked}")))
        else:
            parts.append(("response", _hash(name, f"{user}:{nonce}:{asked}")))
        if "opaque" in given:
            parts.append(("opaque", given["opaque"]))
        if challenge.qops or is_session:
            parts.append(("cnonce", self._client_nonce))
        text = ", ".join(f'{key}="{_escaped(value)}"' for key, value in parts)
        if "algorithm" in given:  # an echo: who did not say it may not understand it
            text += f", algorithm={given['algorithm']}"
        return f"Digest {text}" + (f", qop=auth, nc={self._count:08x}" if challenge.qops else "")


def _hash(name: str, text: str) -> str:
    return _HASHES[name](text.encode(), usedforsecurity=False).hexdigest()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _unanswerable(challenges: list[Challenge]) -> str:
    if not challenges:
        return "the camera refuses access (401) and does not say how to authenticate"
    offered = sorted({each.algorithm if each.scheme == "digest" else each.scheme for each in challenges})
    return f"the camera wants an authentication that is not supported ({', '.join(offered)[:80]})"
