"""The extension modules; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = Path("_native/gateway_native")

# C sources linked into the extension of that name.
EXTRA_SOURCES = {"batch": ["crc32c.c"]}

# `make sanitize` and debug builds add their flags here, e.g. "-fsanitize=address".
EXTRA_FLAGS = os.environ.get("GATEWAY_CFLAGS", "").split()


def extension(source: Path) -> Extension:
    """One extension per .pyx, rebuilt when any header or .pxd beside it changes."""
    name = source.stem
    headers = [str(path) for pattern in ("*.pxd", "*.h") for path in sorted(NATIVE.glob(pattern))]
    extra = [str(NATIVE / file) for file in EXTRA_SOURCES.get(name, [])]
    return Extension(
        f"gateway_native.{name}",
        sources=[str(source), *extra],
        depends=[*headers, *extra],
        include_dirs=[str(NATIVE)],
        # Python's own flags warn of comparisons that Cython's loops are full of.
        extra_compile_args=["-O3", "-std=c11", "-D_GNU_SOURCE", "-Wno-sign-compare", *EXTRA_FLAGS],
        extra_link_args=EXTRA_FLAGS,
    )


def extensions() -> list[Extension]:
    """All of them; none for an installation beside a tree in which `make` builds them itself."""
    if os.environ.get("GATEWAY_EXTENSIONS") == "no":
        return []
    built: list[Extension] = cythonize(
        [extension(source) for source in sorted(NATIVE.glob("*.pyx"))],
        include_path=["_native"],
        compiler_directives={"language_level": "3", "embedsignature": True},
    )
    return built


setup(ext_modules=extensions(), options={"build_ext": {"parallel": os.cpu_count() or 1}})
