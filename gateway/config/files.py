"""From files to one dictionary: includes, environment variables, password files; and back from a key to its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.config.toml_lines import TomlSyntaxError, parse
from gateway.errors import ConfigError

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]

SECRET_BYTES_MAX = 64 * 1024
FILE_BYTES_MAX = 16 * 1024 * 1024
FILES_MAX = 1_000

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_KEYS = {
    "password_file", "tls_ca", "tls_cert", "tls_key", "tls_client_ca", "tls_client_crl", "users_file", "access_file",
}  # fmt: skip


@dataclass
class Sources:
    """The merged document, where each of its keys came from, and what is wrong already."""

    document: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, tuple[str, int]] = field(default_factory=dict)  # file and 1-based line
    problems: list[Problem] = field(default_factory=list)
    name: str = "configuration"

    def place(self, path: KeyPath) -> str:
        """``file:line`` of the key, or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                file, line = self.places[path[:length]]
                return f"{file}:{line}"
        return self.name

    def sentences(self, problems: Iterable[Problem]) -> list[str]:
        """One line each, in the order of the files."""

        def order(problem: Problem) -> tuple[str, int]:
            file, _, line = self.place(problem[0]).rpartition(":")
            return (file, int(line)) if line.isdigit() else ("", 0)

        lines = []
        for path, text in sorted(problems, key=order):
            key = dotted(path)
            lines.append(f"{self.place(path)}: {key}: {text}" if key else f"{self.place(path)}: {text}")
        return lines


def dotted(path: KeyPath) -> str:
    """The path as one writes it in TOML; array items as ``routes[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part) is not None
            text += ("." if text else "") + (part if bare else '"' + part.replace("\n", "\\n") + '"')
    return text


def read_file(path: Path, *, secrets: bool = True) -> Sources:
    """The file and what it includes. Raises ConfigError if a file cannot be read or is not TOML.

    secrets: whether password files are read, too.
    """
    sources = Sources(name=str(path))
    document, lines = _parse_file(path)
    patterns = document.pop("include", [])
    _merge(sources, document, lines, path)
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        sources.problems.append((("include",), 'must be a list of file names, as in ["conf.d/*.toml"]'))
        patterns = []
    if ("include",) in lines:
        sources.places[("include",)] = (str(path), lines[("include",)])
    for included in _included(sources, path, patterns):
        document, lines = _parse_file(included)
        if "include" in document:
            sources.places[("include", str(included))] = (str(included), lines[("include",)])
            sources.problems.append((("include", str(included)), "an included file cannot include others"))
            del document["include"]
        _merge(sources, document, lines, included)
    _resolve(sources, secrets=secrets)
    return sources


def read_dict(document: Mapping[str, Any], directory: Path) -> Sources:
    sources = Sources()
    _merge(sources, _copied(document), {}, directory / "configuration")
    _resolve(sources)
    return sources


def _parse_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        hint = "; 'gateway init' writes a first one" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{hint}.") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than {FILE_BYTES_MAX} bytes; this cannot be a configuration.")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text, which TOML must be.") from None
    try:
        return parse(text)
    except TomlSyntaxError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise ConfigError(f"{place}: not valid TOML: {error}.") from None


def _included(sources: Sources, path: Path, patterns: list[str]) -> list[Path]:
    files: list[Path] = []
    for index, pattern in enumerate(patterns):
        if Path(pattern).is_absolute():
            root = Path(Path(pattern).anchor)
            found = sorted(root.glob(str(Path(pattern).relative_to(root))))
        else:
            found = sorted(path.parent.glob(pattern)) if pattern else []
        if not found and not any(character in pattern for character in "*?["):
            sources.problems.append((("include", index), f"there is no file {str(path.parent / pattern)!r}"))
        files += [file for file in found if file not in files and file != path and file.is_file()]
    if len(files) > FILES_MAX:
        sources.problems.append((("include",), f"matches {len(files)} files; at most {FILES_MAX} are read"))
    return files[:FILES_MAX]


def _merge(sources: Sources, document: dict[str, Any], lines: Mapping[KeyPath, int], file: Path) -> None:
    """Adds a file's tables to what is there; the same key in two files is an error."""
    _anchor_paths(document, file.parent)
    for path, line in lines.items():
        if path[0] != "include":
            sources.places.setdefault(path, (str(file), line))
    _merge_table(sources, sources.document, document, (), lines, file)


def _merge_table(
    sources: Sources,
    into: dict[str, Any],
    table: dict[str, Any],
    path: KeyPath,
    lines: Mapping[KeyPath, int],
    file: Path,
) -> None:
    for key, value in table.items():
        here = (*path, key)
        if key not in into:
            into[key] = value
        elif isinstance(into[key], dict) and isinstance(value, dict):
            _merge_table(sources, into[key], value, here, lines, file)
        else:
            again = f"{file}:{lines[here]}" if here in lines else str(file)
            sources.problems.append((here, f"is set a second time in {again}; keep one of the two"))


def _anchor_paths(table: dict[str, Any], directory: Path) -> None:
    """Relative paths start where the file that names them is, not where the program was started."""

    def anchored(value: str) -> str:
        return value if _VARIABLE.search(value) or not value else str(directory / Path(value).expanduser())

    if isinstance(table.get("data"), str):
        table["data"] = anchored(table["data"])
    for section in [*_credential_sections(table), *_sections(table, ("mqtt", "listeners"))]:
        for key in _PATH_KEYS & section[1].keys():
            if isinstance(section[1][key], str):
                section[1][key] = anchored(section[1][key])


def _credential_sections(document: Mapping[str, Any]) -> list[tuple[KeyPath, dict[str, Any]]]:
    """The tables that may hold credentials: subscribers, cameras, and the control plane's."""
    control = document.get("control")
    found: list[tuple[KeyPath, dict[str, Any]]] = [(("control",), control)] if isinstance(control, dict) else []
    return [*found, *_sections(document, ("mqtt", "subscribers")), *_sections(document, ("cameras",))]


def _sections(document: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[KeyPath, dict[str, Any]]]:
    """The tables by name in the one at ``path``, as far as they are tables."""
    group: Any = document
    for part in path:
        group = group.get(part) if isinstance(group, dict) else None
    if not isinstance(group, dict):
        return []
    return [((*path, name), section) for name, section in group.items() if isinstance(section, dict)]


def _resolve(sources: Sources, *, secrets: bool = True) -> None:
    _resolve_variables(sources, sources.document, ())
    for path, section in _credential_sections(sources.document) if secrets else ():
        _resolve_password_file(sources, path, section)


def _resolve_variables(sources: Sources, container: dict[str, Any] | list[Any], path: KeyPath) -> None:
    keys: list[Any] = list(container) if isinstance(container, dict) else list(range(len(container)))
    for key in keys:
        value, here = container[key], (*path, key)
        if isinstance(value, dict | list):
            _resolve_variables(sources, value, here)
        elif isinstance(value, str) and "${" in value:
            resolved = _variable(sources, value, here)
            if resolved is not None:
                container[key] = resolved


def _variable(sources: Sources, value: str, path: KeyPath) -> str | None:
    """The variable's value, or None after noting what is wrong; the value itself is never shown."""
    match = _VARIABLE.fullmatch(value)
    if match is None:
        sources.problems.append(
            (path, "${NAME} works only as the whole value; put the complete text into the variable (or into a file)")
        )
    elif not _VARIABLE_NAME.fullmatch(match[1]):
        sources.problems.append(
            (path, "between ${ and } stands the name of an environment variable, as in ${GATE1_PASSWORD}")
        )
    elif match[1] not in os.environ:
        sources.problems.append((path, f"the environment variable {match[1]} is not set"))
    elif not os.environ[match[1]]:
        sources.problems.append((path, f"the environment variable {match[1]} is empty"))
    else:
        return os.environ[match[1]]
    return None


def _resolve_password_file(sources: Sources, path: KeyPath, section: dict[str, Any]) -> None:
    file = section.get("password_file")
    if not isinstance(file, str):
        return
    here = (*path, "password_file")
    if "password" in section:
        sources.problems.append((here, "stands beside 'password'; keep one of the two"))
        return
    try:
        with Path(file).open("rb") as opened:
            raw = opened.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        sources.problems.append((here, f"{file} cannot be read: {error.strerror}"))
        return
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        sources.problems.append((here, f"{file} is not UTF-8 text"))
        return
    if not text or len(raw) > SECRET_BYTES_MAX:
        what = f"is longer than {SECRET_BYTES_MAX} bytes" if text else "is empty"
        sources.problems.append((here, f"{file} {what}; it should hold the password and nothing else"))
        return
    section["password"] = text


def _copied(value: Any) -> Any:
    """Containers are copied because resolving changes them; leaves are kept."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
