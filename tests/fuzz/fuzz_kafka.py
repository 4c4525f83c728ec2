"""The Kafka endpoint under atheris: ``python -m tests.fuzz.fuzz_kafka [options of libFuzzer] [directory of inputs]``.

See fuzzing.py for how. What it looks at is Python for the most part, whose branches are counted here.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from tests.fuzz.fuzzing import OneInput, fuzz

INPUT_BYTES_MAX = 1_000
INSTRUMENTED = ["gateway.kafka", "gateway.serve.kafka", "gateway.log.compression"]


def seed(directory: Path) -> None:
    """Inputs to begin with."""
    from tests.fuzz.kafka_seeds import inputs

    for name, data in inputs().items():
        (directory / name).write_bytes(data)


def target() -> OneInput:
    """What is looked at is imported here, where its branches get counters."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.target_kafka import Target
    # A coroutine that nobody awaits, and what else is noticed only when an object goes.
    unraisable: list[str] = []
    warnings.simplefilter("error", RuntimeWarning)
    sys.unraisablehook = lambda found: unraisable.append(f"{found.exc_value!r} {found.err_msg} {found.object!r}")
    made = Target()

    def run(data: bytes) -> None:
        made.run(data)
        assert unraisable == [], unraisable

    return run


if __name__ == "__main__":
    fuzz(target, seed, INPUT_BYTES_MAX)
