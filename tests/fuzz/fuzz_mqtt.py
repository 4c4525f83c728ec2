"""The MQTT parser under atheris: ``python -m tests.fuzz.fuzz_mqtt [options of libFuzzer] [directory of inputs]``.

See fuzzing.py for how.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.fuzzing import OneInput, fuzz
from tests.support.capture_mqtt import DATA

# How the captures are opened and cut, to begin with: MQTT 5 and 3.1.1, sessions and topic aliases allowed.
SEED_OPTIONS = (b"\x29\x07\x05\x20\x60\xc0", b"\x28\x03\x05\x20\x60\xc0")
# Longer inputs take longer and find no more: what is large is tested elsewhere.
INPUT_BYTES_MAX = 2_000


def seed(directory: Path) -> None:
    """What real clients sent, to begin with."""
    for path in DATA.glob("*.bin"):
        for number, options in enumerate(SEED_OPTIONS):
            (directory / f"{path.stem}-{number}").write_bytes(options + path.read_bytes())


def target() -> OneInput:
    """The parser's own modules come after the library that counts their branches."""
    from tests.fuzz.target import Target

    return Target().run


if __name__ == "__main__":
    fuzz(target, seed, INPUT_BYTES_MAX)
