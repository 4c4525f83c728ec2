"""What the source distribution and the wheel contain, and that each is enough for the next step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "_native" / "gateway_native"
EXTENSIONS = sorted(path.stem for path in NATIVE.glob("*.pyx"))
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", "gateway-*"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def build(step: str, source: Path, to: Path) -> Path:
    """Runs one hook of the build backend, as `pip` and `build` do."""
    to.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta as backend; print(backend.{step}({str(to)!r}))"
    # What is tested is what the distributions hold, not how fast the result is.
    environment = {**os.environ, "GATEWAY_CFLAGS": "-O0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    directory = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, directory / "tree", ignore=LEFT_OUT)
    return build("build_sdist", directory / "tree", directory / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution alone."""
    directory = tmp_path_factory.mktemp("wheel")
    # Not tarfile's extractall: whether it wants, knows or refuses a filter depends on Python's patch release.
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(directory)], check=True)
    return build("build_wheel", directory / sdist.name.removesuffix(".tar.gz"), directory / "dist")


def test_the_source_distribution_has_what_building_needs(sdist: Path) -> None:
    """Every .pyx, .pxd, header and hand-written C file is in it, and nothing that was generated."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(ROOT)) for pattern in ("*.pyx", "*.pxd", "*.pyi", "*.h") for path in NATIVE.glob(pattern)
    }
    assert sources <= names
    compiled = {name for name in names if name.startswith("_native/") and name.endswith((".c", ".so", ".o"))}
    assert compiled == {"_native/gateway_native/crc32c.c"}
    for needed in (
        "setup.py",
        "Makefile",
        ".ci/check-machine",
        "README.md",
        "LICENSE",
        "docs/guide.md",
        "tests/conftest.py",
    ):
        assert needed in names


def test_the_wheel_has_modules_and_types_but_no_sources(wheel: Path) -> None:
    """Extensions, stubs and .pxd files are in it, .pyx and .c are not; nothing but our three packages."""
    names = zipfile.ZipFile(wheel).namelist()
    for extension in EXTENSIONS:
        assert any(name.startswith(f"gateway_native/{extension}.") and name.endswith(".so") for name in names), (
            extension
        )
        assert f"gateway_native/{extension}.pyi" in names
    assert [name for name in names if name.endswith((".pyx", ".c", ".o"))] == []
    for package in ("gateway", "gateway_adapters", "gateway_native"):
        assert f"{package}/py.typed" in names
    assert "gateway/log/FORMAT.md" in names
    assert {name.partition("/")[0] for name in names} == {
        "gateway", "gateway_adapters", "gateway_native", wheel.name.rsplit("-", 3)[0] + ".dist-info",
    }  # fmt: skip


def test_the_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, the extensions load, the sources are registered and the command starts."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    imports = "; ".join(f"import gateway_native.{name}" for name in EXTENSIONS)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); {imports}; import gateway, gateway.cli\n"
        "from gateway.ingest.source import load_factory\n"
        "for kind in ('mqtt.listener', 'mqtt.subscriber', 'camera'): load_factory(kind)\n"
        f"assert gateway.__file__.startswith({str(target)!r}), gateway.__file__\n"
        f"assert gateway_native.batch.__file__.startswith({str(target)!r})\n"
        "sys.exit(gateway.cli.run(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gateway ")
