"""Crashes, full and failing disks, in thousands of lives: nothing acknowledged is lost, and every start succeeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gateway_native.batch import Selection

from gateway.log.layout import list_partitions, prepare
from gateway.log.partition import PartitionReader
from gateway.log.repair import repair
from tests.simulation.command import run_seeds
from tests.simulation.files import materialize
from tests.simulation.reading import identity_of
from tests.simulation.run import Run

# `make torture` runs many more, and other ones.
SEEDS = int(os.environ.get("GATEWAY_SIMULATION_SEEDS", "6000"))
SEEDS_PER_TEST = 500


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_no_seed_breaks_a_promise(first):
    """Acknowledged records are there once, in order, at their offsets, refused ones are not; every start succeeds."""
    outcome = run_seeds(range(first, min(first + SEEDS_PER_TEST, SEEDS)))
    assert not outcome.failures, "\n".join(map(str, outcome.failures))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_the_shipped_readers_agree(first, tmp_path: Path):
    """What is left after a run, as real files: `verify --repair` leaves it sound, a reader gives every record."""
    for seed in range(first, first + 50):
        run = Run(seed)
        run.go()
        data = tmp_path / str(seed)
        prepare(data, "plant-7", "Europe/Berlin")
        materialize(run.disk, "/disk", data)
        report, _ = repair(data, deep=True)
        # A segment that was replaced after a failed sync may keep room behind its end.
        damages = [
            damage for damage in report.damages if "zero bytes after" not in damage.problem or not run.plan.faults
        ]
        assert not damages, f"seed {seed}: {damages}"
        for found in list_partitions(data):
            model = next(model for model in run.models if model.name == f"/disk/{found.path.name}")
            chunks = PartitionReader(found.path).chunks(Selection())
            rows = {row[0]: identity_of(row[2], row[4]) for chunk in chunks for row in chunk}
            durable = {offset: identity for offset, identity in model.durable.items() if offset < limit_of(found.path)}
            assert rows == durable, f"seed {seed}: {found.path.name}"


def limit_of(directory: Path) -> int:
    return PartitionReader(directory).limit().offset


@pytest.mark.parametrize("seed", [3, 11, 16, 43])
def test_the_same_seed_does_the_same(seed):
    """Every operation of the disk, every byte written and every decision is the same the second time."""
    first, second = Run(seed), None
    first.go()
    second = Run(seed)
    second.go()
    assert first.disk.operations == second.disk.operations
    assert first.disk.digest == second.disk.digest
    assert [text for text in first.story if "sync_ns" not in text] == [
        text for text in second.story if "sync_ns" not in text
    ]
