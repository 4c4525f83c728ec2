"""docs/reference.md names every key in the table it stands in, with its default, and everything public in Python."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway.config import model
from gateway.log.gap import REASONS
from gateway.replay.exports.writers import FORMATS

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
# Tables of the configuration, and the one key in each that has to be there.
TABLES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "[site]": (model.SiteConfig, {}),
    "[disk]": (model.DiskConfig, {}),
    "[limits]": (model.LimitsConfig, {}),
    "[streams.NAME]": (model.StreamConfig, {}),
    "[mqtt.listeners.NAME]": (
        model.ListenerConfig, {"bind": "127.0.0.1:1883", "routes": [{"filter": "#", "stream": "telemetry"}]}
    ),
    "[mqtt.subscribers.NAME]": (
        model.SubscriberConfig, {"url": "mqtt://broker", "routes": [{"filter": "#", "stream": "telemetry"}]}
    ),
    "[cameras.NAME]": (model.CameraConfig, {"url": "rtsp://10.0.0.11/main"}),
    "[control]": (model.ControlConfig, {"url": "mqtt://broker"}),
    "[kafka]": (model.KafkaConfig, {"bind": "127.0.0.1:9092"}),
}  # fmt: skip
LITERAL = re.compile(r'"[^"<]*"|[0-9]+|true|false')
# What is spelt as public, for other modules of the package.
INTERNAL = {"shaped", "decoded", "limit", "follower", "stamp", "key_frames", "of", "meta", "reader"}


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ `{re.escape(heading)}`$(.*?)(?=^#)", REFERENCE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"there is no heading for {heading}"
    return found[1]


def rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Of the tables in it: names in the first cell, and all cells."""
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            yield _code(cells[0]), cells


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_its_keys_and_no_others(table: str) -> None:
    """In the section of that table, not just somewhere."""
    kind, _ = TABLES[table]
    keys = {field.alias or name for name, field in kind.model_fields.items()}
    documented = [name for names, _ in rows(section(table)) for name in names]
    assert sorted(documented) == sorted(keys)


@pytest.mark.parametrize("table", TABLES)
def test_defaults_are_those_that_are_told(table: str) -> None:
    """A default that is told as a value is the one that holds without it."""
    kind, required = TABLES[table]
    without = kind.model_validate(required)
    compared = 0
    for names, cells in rows(section(table)):
        told = [found.strip().strip("`") for found in cells[1].split(", ")]
        if len(told) != len(names) or not all(LITERAL.fullmatch(value) for value in told):
            continue  # words: it depends
        for name, value in zip(names, told, strict=True):
            given = kind.model_validate({**required, name: tomllib.loads(f"value = {value}")["value"]})
            attribute = next(key for key, field in kind.model_fields.items() if name in {key, field.alias})
            assert getattr(given, attribute) == getattr(without, attribute), name
            compared += 1
    assert compared


def test_the_top_level_is_complete() -> None:
    """Every table of the configuration has a section, and the keys beside them a row."""
    for name, field in model.Config.model_fields.items():
        key = field.alias or name
        assert re.search(rf"^### `\[{key}[\].]|^\| `{key}` ", REFERENCE, re.MULTILINE), key


def test_routes_have_their_keys() -> None:
    """In the rows of the tables that have routes."""
    own: set[str] = set()
    for table, kind in (("[mqtt.listeners.NAME]", model.Route), ("[mqtt.subscribers.NAME]", model.SubscriberRoute)):
        (cells,) = [cells for names, cells in rows(section(table)) if names == ["routes"]]
        own |= {word for code in _code(cells[-1]) for word in re.findall(r"\w+", code)}
        assert set(kind.model_fields) <= own


def test_why_records_are_missing_is_complete() -> None:
    """Each reason of a gap record, in the paragraph about them."""
    (told,) = re.findall(r"^\*\*Gap records\*\*(.*?)^$", REFERENCE, re.DOTALL | re.MULTILINE)
    assert [reason for reason in REASONS if f"`{reason}`" not in told] == []


def test_endings_of_exports_are_complete() -> None:
    """Each that decides a format has its row."""
    (table,) = re.findall(r"^### Exports$(.*?)(?=^#)", REFERENCE, re.DOTALL | re.MULTILINE)
    told = {name for names, _ in rows(table) for name in names}
    assert told == {suffix for each in FORMATS for suffix in each.suffixes} | {".mp4"}


def test_the_environment_is_complete() -> None:
    """Every variable of ours that the program looks at has a row, and no other has."""
    sources = [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    used = {name for path in sources for name in re.findall(r"\bGATEWAY_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    (table,) = re.findall(r"^### Environment$(.*?)(?=^#)", REFERENCE, re.DOTALL | re.MULTILINE)
    assert {name for names, _ in rows(table) for name in names} == used


def members(kind: type[Any]) -> dict[str, Any]:
    """What is public of a class, of ours, its fields too."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("gateway")]
    found = {name: getattr(kind, name) for base in ours for name in vars(base)}
    found |= {name: None for base in ours for name in getattr(base, "__annotations__", {}) if name not in found}
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in INTERNAL}


CLASSES = [
    name
    for name in gateway.__all__
    if inspect.isclass(getattr(gateway, name)) and not issubclass(getattr(gateway, name), Exception)
]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_its_members_and_no_others(name: str) -> None:
    """Methods with the names of their arguments; attributes that are set when an object is made count, too."""
    kind = getattr(gateway, name)
    documented = dict(re.fullmatch(r"(\w+)(\(.*\))?", each).groups() for each in _first_names(section(name)))  # type: ignore[union-attr]
    expected = members(kind)
    source = inspect.getsource(kind)
    set_later = {found for found in documented if re.search(rf"self\.{found}[:=\s]", source)}
    assert set(documented) - set_later == set(expected) - set_later
    for member, arguments in documented.items():
        if inspect.isfunction(expected.get(member)):
            assert arguments == _arguments(expected[member]), member


def _first_names(text: str) -> list[str]:
    """Code in the first cells of tables; without a table, all words in code."""
    table = [found for line in text.splitlines() if line.startswith("| `") for found in _code(line.split(" | ")[0])]
    return table or [found for found in _code(text) if re.fullmatch(r"\w+", found)]


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def _arguments(function: Any) -> str:
    """As the reference writes them: names alone, a star before those that are given by name."""
    names: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    return f"({', '.join(names)})"


def test_the_module_has_its_names_and_no_others() -> None:
    """Classes have sections; errors and `open` stand in the table of the module."""
    found = {name.partition("(")[0] for name in _first_names(section("gateway"))}
    assert found | set(CLASSES) == set(gateway.__all__)
    (opening,) = [name for name in _first_names(section("gateway")) if name.startswith("open(")]
    assert re.findall(r"\w+", opening)[1:] == list(inspect.signature(gateway.open).parameters)


@pytest.mark.parametrize("name", sorted(set(gateway.__all__) - set(CLASSES) - {"open"}))
def test_what_an_error_carries_is_told(name: str) -> None:
    """Attributes that its constructor sets, in the row of the error."""
    kind = getattr(gateway, name)
    (cells,) = [cells for names, cells in rows(section("gateway")) if name in names]
    for attribute in re.findall(r"self\.(\w+)(?::[^=\n]+)? =", inspect.getsource(kind)):
        assert attribute == "source" or f"`{attribute}`" in cells[1], attribute
