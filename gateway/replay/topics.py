"""Columns from topics: "plant/{line}/{sensor}" names the levels of a key."""

from __future__ import annotations

import re

from gateway.errors import UsageError

_NAME = re.compile(r"\{([^{}]*)\}")


class TopicTemplate:
    """A template of MQTT topics. `names` are its columns, in their order.

    `{name}` is a level, or a part of one, of at least one character; `+` stands for any level and `#`, at the end, for
    any number of them, as in topic filters. UsageError for a template that means nothing.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self.names = tuple(_NAME.findall(template))
        if not self.names:
            raise UsageError(f'The topic template {template!r} names no column: write "plant/{{line}}/{{sensor}}".')
        for name in self.names:
            if not name.isidentifier() or self.names.count(name) > 1:
                raise UsageError(f"The topic template {template!r}: {{{name}}} is no name, or there twice.")
        self._pattern = re.compile(self._expression())

    def _expression(self) -> str:
        levels = self.template.split("/")
        parts: list[str] = []
        for number, level in enumerate(levels):
            if level == "#" and number == len(levels) - 1:
                return ("/".join(parts) + "(?:/.*)?") if parts else ".*"
            parts.append("[^/]*" if level == "+" else self._level(level))
        return "/".join(parts)

    def _level(self, level: str) -> str:
        pieces = _NAME.split(level)
        for literal in pieces[::2]:
            if any(character in literal for character in "{}+#"):
                raise UsageError(f"The topic template {self.template!r}: {level!r} is no level of a topic filter.")
        return "".join(f"(?P<{piece}>[^/]+?)" if n % 2 else re.escape(piece) for n, piece in enumerate(pieces))

    def match(self, key: str | None) -> tuple[str | None, ...]:
        """A value for each name; all None if the key does not fit."""
        found = self._pattern.fullmatch(key) if key is not None else None
        return tuple(found[name] for name in self.names) if found else (None,) * len(self.names)
