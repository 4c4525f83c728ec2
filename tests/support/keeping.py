"""A writer, a disk and clocks that do what a test says, for what the keeper does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway_native import summary, watermark
from gateway_native.summary import Summary
from gateway_native.watermark import Watermark

from gateway.ingest.clock_watch import Clocks
from gateway.ingest.disk import Space

MIB = 1 << 20
NOW_S = 1_800_000_000


@dataclass
class FakeTime:
    """Both clocks."""

    real_s: float = NOW_S
    boot_s: float = 1000.0
    synchronised: bool | None = True

    def pass_by(self, seconds: float) -> None:
        self.real_s += seconds
        self.boot_s += seconds

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: int(self.real_s * 1e9), lambda: int(self.boot_s * 1e9), lambda: self.synchronised)

    @property
    def ms(self) -> int:
        return int(self.real_s * 1000)


@dataclass
class FakeWriter:
    """States of partitions by index, and what was asked for."""

    states: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[int, dict[str, tuple[int, int, int, int]]] = field(default_factory=dict)
    rolled: list[int] = field(default_factory=list)
    retries: int = 0

    def add(self, **state: Any) -> int:
        whole = {"segment_base": 0, "position": 0, "failed": False, "stalled_errno": 0, "refused": 0, "lost": 0}
        self.states.append({**whole, "refusing": False, **state})
        return len(self.states) - 1

    def partition_state(self, index: int) -> dict[str, Any]:
        return dict(self.states[index])

    def refusals(self, index: int) -> dict[str, tuple[int, int, int, int]]:
        return self.refused[index]

    def roll(self, index: int) -> None:
        self.rolled.append(index)

    def retry(self) -> None:
        self.retries += 1


@dataclass
class FakeDisk:
    """What is free is what no segment takes, less what others take, and less what is deleted but held."""

    data: Path
    total_bytes: int = 160 * MIB
    others_bytes: int = 0
    held_bytes: int = 0

    def look(self, _directory: Path) -> Space:
        used = sum(path.stat().st_size for path in self.data.glob("*-0/*.log"))
        return Space(self.total_bytes, max(0, self.total_bytes - used - self.others_bytes - self.held_bytes))


def make_stream(data: Path, stream: str, newest_ms: Sequence[int], *, active_bytes: int = 0) -> int:
    """A partition with sealed segments of 1 MiB and ten offsets each; the base offset of the durable one."""
    directory = data / f"{stream}-0"
    directory.mkdir(parents=True)
    entries = b""
    for number, newest in enumerate(newest_ms):
        base = number * 10
        with (directory / f"{base:020d}.log").open("wb") as file:
            file.truncate(MIB)
        entries += summary.encode(Summary(base, MIB, base + 10, newest - 1, newest, 0, 0))
    (directory / "manifest").write_bytes(entries)
    below = len(newest_ms) * 10
    with (directory / f"{below:020d}.log").open("wb") as file:
        file.truncate(active_bytes)
    newest_active = newest_ms[-1] if newest_ms else NOW_S * 1000
    mark = Watermark(1, below, active_bytes, below + 5, newest_active, newest_active, newest_active)
    (directory / "watermark").write_bytes(watermark.encode(mark))
    return below


def segments(data: Path, stream: str) -> list[int]:
    """Base offsets of what is there."""
    return sorted(int(path.stem) for path in (data / f"{stream}-0").glob("*.log"))
