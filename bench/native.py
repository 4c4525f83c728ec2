"""Builds bench/*.pyx when one is first wanted, into build/bench; again when it or the declarations it uses change."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
ROOT = HERE.parent
DECLARATIONS = ROOT / "_native"


def load_module(name: str = "load") -> ModuleType:
    """The extension module bench/<name>.pyx."""
    directory = ROOT / "build" / "bench" / _digest(name)
    built = next(directory.glob(f"lib/{name}.*.so"), None) or _build(name, directory)
    loader = importlib.machinery.ExtensionFileLoader(name, str(built))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _digest(name: str) -> str:
    """The layout of the ring is compiled in, so every declaration counts."""
    found = hashlib.sha256(sys.version.encode())
    for path in [HERE / f"{name}.pyx", *sorted(DECLARATIONS.glob("gateway_native/*.pxd"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _build(name: str, directory: Path) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    print(f"  building bench/{name}.pyx ...", file=sys.stderr)
    extension = Extension(
        name,
        [str(HERE / f"{name}.pyx")],
        include_dirs=[str(DECLARATIONS / "gateway_native")],
        extra_compile_args=["-O3", "-std=c11", "-D_GNU_SOURCE", "-Wno-sign-compare"],
    )
    modules = cythonize(
        [extension],
        include_path=[str(DECLARATIONS)],
        build_dir=str(directory),
        compiler_directives={"language_level": "3"},
        quiet=True,
    )
    distribution = Distribution({"name": f"bench-{name}", "ext_modules": modules})
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(directory / "lib"), str(directory / "temp")
    distribution.verbose = 0
    distribution.run_command("build_ext")
    return next(directory.glob(f"lib/{name}.*.so"))
