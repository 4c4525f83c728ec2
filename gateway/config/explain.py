"""Validation errors as sentences that say what would be right."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from gateway.clock import format_duration, format_size
from gateway.config.files import KeyPath, Problem

# Planned tables that people may have read about; each gets a sentence of its own.
_LATER = {
    ("http",): "the status page is not in this version; remove the table",
    ("forward",): "forwarding is not in this version; remove the table",
}
_LATER_VALUES = {
    ("engine", "aiomqtt"): "only an MQTT subscriber has this engine; leave the key out",
}
_TYPES = {
    "string_type": 'must be text in quotes, as in "text"',
    "int_type": "must be a whole number without quotes",
    "bool_type": "must be true or false, without quotes",
    "list_type": "must be a list in brackets, as in [ … ]",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "is_instance_of": 'must be text in quotes, as in "text"',
    "path_type": "must be a path in quotes",
    "string_too_short": "must not be empty",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One sentence for each thing that is wrong. Values are shown only where they cannot be secret."""
    return [_explained(dict(item), model) for item in error.errors(include_url=False)]


def _explained(item: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    path: KeyPath = tuple(part for part in item["loc"] if part != "[key]")
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    last = path[-1] if path else ""
    if path in _LATER:
        return path, _LATER[path]
    if isinstance(value, str | int) and (last, value) in _LATER_VALUES:
        return path, _LATER_VALUES[last, value]  # type: ignore[index]  # `last` is the str of a known pair here
    if kind == "extra_forbidden":
        return path, _unknown_key(str(last), _keys(_model_at(model, path[:-1])))
    if kind == "missing":
        return path[:-1], f"'{last}' is missing{_what_for(str(last))}"
    if kind == "value_error":
        return path, str(context["error"]).rstrip(".")
    if kind == "literal_error":
        return path, f"must be {context['expected']}, not {value!r}"
    if kind == "too_short":
        return path, "must hold at least one item"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context["ge" if kind == "greater_than_equal" else "le"]
        word = "at least" if kind == "greater_than_equal" else "at most"
        return path, f"must be {word} {_in_unit(bound, _field_name(model, path))}"
    return path, _TYPES.get(kind, item["msg"][:1].lower() + item["msg"][1:])


def _unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.6)
    if near:
        return f"unknown key; did you mean '{near[0]}'?"
    return f"unknown key; known here: {', '.join(sorted(known))}" if known else "unknown key"


def _what_for(key: str) -> str:
    examples = {
        "data": ': where to write, as in data = "/var/lib/gateway"',
        "bind": ': where to listen, as in bind = "127.0.0.1:1883"',
        "routes": ': which topics go to which stream, as in routes = [{ filter = "plant/#", stream = "telemetry" }]',
        "filter": ': a topic filter, as in filter = "plant/#"',
        "stream": ": the stream to record in",
        "url": ": where to connect",
    }
    return examples.get(key, "")


def _in_unit(bound: int, field: str) -> str:
    if field.endswith("_ns"):
        return format_duration(bound)
    return format_size(bound) if field.endswith(("_bytes", "_bytes_max")) else str(bound)


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _field_name(model: type[BaseModel], path: KeyPath) -> str:
    owner = _model_at(model, path[:-1])
    for name, field in owner.model_fields.items() if owner else ():
        if (field.alias or name) == path[-1]:
            return name
    return ""


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of the table at ``path``, following fields, dictionaries by name and lists by index."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {field.alias or name: field.annotation for name, field in current.model_fields.items()}
            current = fields.get(str(part))
        else:
            arguments = typing.get_args(current)
            current = arguments[-1] if arguments else None
        if typing.get_origin(current) in (typing.Annotated, typing.Union, types.UnionType):
            current = typing.get_args(current)[0]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
