"""On which line of a TOML file a key stands."""

from __future__ import annotations

import pytest

from gateway.config.toml_lines import Path, parse


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("\n\na = 1\n", ("a",), 3),
        ("[a]\nb = 1\n", ("a", "b"), 2),
        ("a.b.c = 1\n", ("a", "b", "c"), 1),
        ("[a.b]\n[ a . c ]\nd = 1\n", ("a", "c", "d"), 3),
        ("[\"a.b\"]\n'c d' = 1\n", ("a.b", "c d"), 2),
        ('"\\u00e4" = 1\n', ("ä",), 1),
        ("a = { b = 1, c = [ 1, 2 ] }\n", ("a", "c", 1), 1),
        ("a = [\n  1, # , ]\n  2,\n]\n", ("a", 1), 3),
        ("a = [\n  { b = 1 },\n  { b = 2,\tc = 3 },\n]\n", ("a", 1, "c"), 3),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 1\n", ("a", 1, "c", "d"), 6),
        ('a = """\n[x]\ny = 1 \\""" """\nb = 1\n', ("b",), 4),
        ("a = '''\n[x]\n''''\nb = 1\n", ("b",), 4),
        ('a = """x"""""\nb = 1\n', ("b",), 2),
        ('a = "\\" # \\\\"\nb = 1\n', ("b",), 2),
        ("a = 1979-05-27 07:32:00 # c\nb = -1.5e3\nc = true\n", ("c",), 3),
        ("a = 1\r\nb = 2\r\n", ("b",), 2),
    ],
)
def test_the_line_of_a_key(text: str, path: Path, line: int) -> None:
    """Tables, dotted keys, inline tables, arrays of tables and strings of every kind are followed."""
    _, lines = parse(text)
    assert lines[path] == line


def test_every_key_of_a_document_has_a_line() -> None:
    """The scan finds exactly the paths that tomllib's own document has."""
    text = "a = [[1, {b = 2}], []]\n[c]\nd = {}\n[[c.e]]\nf.g = 1\n[[c.e]]\n"
    document, lines = parse(text)

    def paths(value: object, at: Path) -> set[Path]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {at} | {path for key, item in items for path in paths(item, (*at, key))}

    assert set(lines) == paths(document, ()) - {()}
