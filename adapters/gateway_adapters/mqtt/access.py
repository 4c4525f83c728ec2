"""Who may publish what: rules in the format of Mosquitto's ACL file.

    topic write public/#             of clients without a user name: before the first ``user``
    user press-1
    topic readwrite plant/press-1/#  ``topic FILTER`` alone means readwrite
    topic deny plant/press-1/setup
    pattern write by-client/%c/#     of every client: %u is its user name, %c its client id

Only what allows or denies *publishing* matters, because nothing is ever delivered; ``read`` rules are read over. The
order is Mosquitto's: a user's own rules before patterns, in each of the two what denies before what allows; what no
rule allows is forbidden. Source: mosquitto.conf(5), acl_file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gateway.errors import ConfigError
from gateway.user_files import read_lines
from gateway_adapters.mqtt.protocol import is_filter

RULES_MAX = 1_000_000
# The parser looks at a client's rules for every publish.
RULES_PER_CLIENT_MAX = 1_000
_ACCESS = ("read", "write", "readwrite", "deny")
# In a user name or client id that is put into a filter these would widen what it allows.
_SPECIAL = frozenset("+#/")
_PLACES = re.compile("%[uc]")


class Rule(NamedTuple):
    """The first rule whose filter matches a topic decides."""

    topic_filter: str
    allowed: bool


@dataclass
class _Rules:
    denied: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def ordered(self) -> list[Rule]:
        return [*(Rule(one, allowed=False) for one in self.denied), *(Rule(one, allowed=True) for one in self.allowed)]

    def __len__(self) -> int:
        return len(self.denied) + len(self.allowed)


class Access:
    """The rules of one file."""

    def __init__(self, users: dict[str | None, _Rules], patterns: _Rules) -> None:
        self._users = users  # None: clients without a user name
        self._patterns = patterns

    @classmethod
    def load(cls, path: Path) -> Access:
        """Read the file. Raises ConfigError with file and line."""
        users: dict[str | None, _Rules] = {}
        patterns = _Rules()
        user: str | None = None
        count = 0
        for number, line in enumerate(read_lines(path), 1):
            word, _, rest = line.strip().partition(" ")
            rest = rest.strip()
            if not word or word.startswith("#"):
                continue
            if word == "user" and rest:
                user = rest
            elif word in ("topic", "pattern") and rest:
                rules = patterns if word == "pattern" else users.setdefault(user, _Rules())
                _add(rules, rest, f"{path}:{number}")
                count += 1
                if count > RULES_MAX or len(rules) > RULES_PER_CLIENT_MAX:
                    raise ConfigError(
                        f"{path}:{number}: too many rules; the limits are {RULES_PER_CLIENT_MAX} of one user, the same "
                        f"number of patterns, and {RULES_MAX} in all."
                    )
            else:
                raise ConfigError(
                    f"{path}:{number}: is no rule; known are 'user NAME', 'topic [read|write|readwrite|deny] FILTER' "
                    "and 'pattern [read|write|readwrite|deny] FILTER'."
                )
        return cls(users, patterns)

    def rules(self, user: str | None, client_id: str) -> tuple[Rule, ...]:
        """What this client may publish; none: nothing."""
        own = self._users.get(user, _Rules()).ordered()
        return (*own, *self._from_patterns(user, client_id))

    def _from_patterns(self, user: str | None, client_id: str) -> list[Rule]:
        """As in Mosquitto no pattern helps a client whose name would widen a filter."""
        if _SPECIAL & set(f"{user or ''}{client_id}"):
            return []  # patterns come last: what nothing allows is forbidden
        return [
            Rule(_filled(rule.topic_filter, user or "", client_id), rule.allowed)
            for rule in self._patterns.ordered()
            if user is not None or "%u" not in rule.topic_filter
        ]


def _filled(pattern: str, user: str, client_id: str) -> str:
    """Both at once: a client id of ``%u`` must not become a user name."""
    return _PLACES.sub(lambda match: user if match[0] == "%u" else client_id, pattern)


def _add(rules: _Rules, text: str, place: str) -> None:
    access, _, topic_filter = text.partition(" ")
    topic_filter = topic_filter.strip()
    if access not in _ACCESS or not topic_filter:
        access, topic_filter = "readwrite", text
    if not is_filter(topic_filter):
        raise ConfigError(f"{place}: {topic_filter!r} is no topic filter; '+' and '#' are whole levels, '#' the last.")
    if access == "deny":
        rules.denied.append(topic_filter)
    elif access != "read":
        rules.allowed.append(topic_filter)
