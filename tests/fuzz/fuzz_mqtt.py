"""The MQTT parser under atheris: ``python -m tests.fuzz.fuzz_mqtt [options of libFuzzer] [directory of inputs]``.

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
from pathlib import Path
from typing import Any

from tests.support.capture_mqtt import DATA

# How the captures are opened and cut, to begin with: MQTT 5 and 3.1.1, sessions and topic aliases allowed.
SEED_OPTIONS = (b"\x29\x07\x05\x20\x60\xc0", b"\x28\x03\x05\x20\x60\xc0")
# Longer inputs take longer and find no more: what is large is tested elsewhere.
INPUT_BYTES_MAX = 2_000


def begin_coverage(library: str) -> None:
    """Before the first extension module of ours is loaded."""
    counting = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import atheris

    core = next(Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so"))
    fuzzer = ctypes.CDLL(str(core))
    counting.coverage_begin(fuzzer.__sanitizer_cov_8bit_counters_init, fuzzer.__sanitizer_cov_pcs_init)


def seed(directory: Path) -> None:
    """What real clients sent, to begin with."""
    for path in DATA.glob("*.bin"):
        for number, options in enumerate(SEED_OPTIONS):
            (directory / f"{path.stem}-{number}").write_bytes(options + path.read_bytes())


def is_available() -> bool:
    """Is atheris installed?"""
    return importlib.util.find_spec("atheris") is not None


def main() -> None:
    import atheris

    if library := os.environ.get("GATEWAY_COVERAGE"):
        begin_coverage(library)
    # The parser's own modules come after the library that counts their branches.
    from tests.fuzz.target import Target

    target = Target()

    def one(data: Any) -> None:
        target.run(bytes(data))

    arguments = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if not any(not argument.startswith("-") for argument in arguments):
            corpus = Path(tempfile.mkdtemp(prefix="fuzz-mqtt-inputs-"))
            stack.callback(shutil.rmtree, corpus, ignore_errors=True)
            seed(corpus)
            arguments.append(str(corpus))
        atheris.Setup([sys.argv[0], f"-max_len={INPUT_BYTES_MAX}", *arguments], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
