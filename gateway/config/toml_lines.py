"""Where in a TOML file a key stands. ``tomllib`` parses but keeps no line numbers; error messages need them.

Only for text that ``tomllib`` has accepted: the scan relies on valid TOML and does not check it again.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_SYNTAX_AT = re.compile(r"^(.*) \(at line (\d+), column (\d+)\)$", re.DOTALL)


class TomlSyntaxError(ValueError):
    """The text is not TOML; ``line`` is 1-based, None at the end of the document."""

    def __init__(self, message: str, line: int | None) -> None:
        self.line = line
        super().__init__(message)


def parse(text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The document, and for every table, key and array item the 1-based line it starts on."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _SYNTAX_AT.match(str(error))
        if match is None:
            raise TomlSyntaxError(
                str(error).replace(" (at end of document)", ", at the end of the file"), None
            ) from None
        raise TomlSyntaxError(f"{match[1]} (column {match[3]})", int(match[2])) from None
    # As tomllib does, so that positions count the same characters.
    return document, _Scan(text.replace("\r\n", "\n")).run()


class _Scan:
    """One pass over a valid document, noting the line of every key path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.array_lengths: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._key_value(table)
        return self.lines

    def _header(self) -> Path:
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        path = self._resolve(self._key())
        self._skip_blank()
        self.at += 2 if is_array else 1
        if is_array:
            self._note(path)
            index = self.array_lengths.get(path, 0)
            self.array_lengths[path] = index + 1
            path = (*path, index)
        self._note(path)
        return path

    def _resolve(self, keys: Path) -> Path:
        """``a.b`` inside an array of tables ``[[a]]`` means its latest item."""
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if path in self.array_lengths and position < len(keys) - 1:
                path = (*path, self.array_lengths[path] - 1)
        return path

    def _key_value(self, table: Path) -> None:
        line = self._line()
        path = (*table, *self._key())
        self._note(path, line)
        self._skip_blank()
        self.at += 1  # "="
        self._value(path)

    def _key(self) -> Path:
        """A dotted key; leaves ``at`` behind it."""
        keys: list[str] = []
        while True:
            self._skip_blank()
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                keys.append(next(iter(tomllib.loads(f"{self.text[start : self.at]} = 0"))))
            else:
                match = _BARE.match(self.text, self.at)
                assert match is not None, "tomllib accepted this document"
                keys.append(match[0])
                self.at = match.end()
            self._skip_blank()
            if self.text[self.at] != ".":
                return tuple(keys)
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip_blank()
        match self.text[self.at]:
            case '"' | "'":
                self._string()
            case "[":
                self.at += 1
                index = 0
                while self._next_item("]"):
                    self._note((*path, index))
                    self._value((*path, index))
                    index += 1
            case "{":
                self.at += 1
                while self._next_item("}"):
                    self._key_value(path)
            case _:
                match = _SCALAR.match(self.text, self.at)
                assert match is not None, "the pattern matches the empty string"
                self.at = match.end()

    def _next_item(self, closing: str) -> bool:
        self._skip_blank()
        if self.text[self.at] == ",":
            self.at += 1
            self._skip_blank()
        if self.text[self.at] == closing:
            self.at += 1
            return False
        return True

    def _string(self) -> None:
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            end = self._find_end(quote * 3, self.at + 3)
            while self.text.startswith(quote, end):  # up to two quotes may precede the closing three
                end += 1
            self.at = end
        else:
            self.at = self._find_end(quote, self.at + 1)

    def _find_end(self, closing: str, start: int) -> int:
        at = start
        while not self.text.startswith(closing, at):
            at += 2 if self.text[at] == "\\" and closing[0] == '"' else 1
        return at + len(closing)

    def _skip_blank(self) -> bool:
        """Passes over white space and comments; False at the end."""
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif character.isspace():
                self.at += 1
            else:
                return True
        return False

    def _note(self, path: Path, line: int | None = None) -> None:
        line = line or self._line()
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1
