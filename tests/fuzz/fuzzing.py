"""Running a target under atheris, libFuzzer for Python.

`make fuzz` builds the extension modules so that libFuzzer sees which of their branches an input reaches:
GATEWAY_COVERAGE names the library that tells it, tests/fuzz/coverage.c. Without that only Python's branches guide it.
An input that fails is written to the working directory; given as the only argument, it shows the error again.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

OneInput = Callable[[bytes], None]


def is_available() -> bool:
    """Is atheris installed?"""
    return importlib.util.find_spec("atheris") is not None


def begin_coverage(library: str) -> None:
    """Before the first extension module of ours is loaded."""
    counting = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import atheris

    core = next(Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so"))
    fuzzer = ctypes.CDLL(str(core))
    counting.coverage_begin(fuzzer.__sanitizer_cov_8bit_counters_init, fuzzer.__sanitizer_cov_pcs_init)


def fuzz(target: Callable[[], OneInput], seed: Callable[[Path], None], input_bytes_max: int) -> None:
    """Until libFuzzer's options say to stop.

    target: called once coverage is counted. seed: writes inputs to begin with into a directory.
    """
    import atheris

    if library := os.environ.get("GATEWAY_COVERAGE"):
        begin_coverage(library)
    run = target()

    def one(data: Any) -> None:
        run(bytes(data))

    arguments = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if not any(not argument.startswith("-") for argument in arguments):
            corpus = Path(tempfile.mkdtemp(prefix="fuzz-inputs-"))
            stack.callback(shutil.rmtree, corpus, ignore_errors=True)
            seed(corpus)
            arguments.append(str(corpus))
        atheris.Setup([sys.argv[0], f"-max_len={input_bytes_max}", *arguments], one)
        atheris.Fuzz()
