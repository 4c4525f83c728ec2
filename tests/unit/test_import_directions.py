"""Imports run one way; see docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"gateway": ROOT / "gateway", "gateway_adapters": ROOT / "adapters" / "gateway_adapters",
           "gateway_native": ROOT / "_native" / "gateway_native"}  # fmt: skip
# What a part of the house may not know. What is only imported for its types counts as well.
MAY_NOT_KNOW = {
    "gateway_native": ("gateway", "gateway_adapters"),
    "gateway": ("gateway_adapters",),
    "gateway.log": ("gateway.ingest", "gateway.replay", "gateway.serve", "gateway.app"),
    "gateway.replay": ("gateway.ingest", "gateway.serve", "gateway.app"),
    "gateway.ingest": ("gateway.replay", "gateway.serve", "gateway.app"),
    "gateway.serve": ("gateway.replay", "gateway.app"),
    "gateway.kafka": ("gateway.ingest", "gateway.log", "gateway.replay", "gateway.serve", "gateway.app"),
}


def imports(package: str) -> Iterator[tuple[Path, str]]:
    """Every module that a package's own modules import, wherever in them."""
    root, *rest = package.split(".")
    for path in sorted(SOURCES[root].joinpath(*rest).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, one.name) for one in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield from ((path, f"{node.module}.{one.name}") for one in node.names)


@pytest.mark.parametrize("package", MAY_NOT_KNOW)
def test_imports_run_one_way(package: str) -> None:
    """No module imports one that builds on it."""
    found = list(imports(package))
    assert found
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in found
        if any(f"{name}.".startswith(f"{other}.") for other in MAY_NOT_KNOW[package])
    ]
    assert wrong == []
