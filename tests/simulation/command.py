"""The command line of the simulation."""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tests.simulation.planted import plant
from tests.simulation.run import Run

SEEDS_PER_TASK = 100
# Writers and their rings hold each other until the collector comes; each has descriptors.
SEEDS_PER_COLLECTION = 25
FAILURES_SHOWN = 5


class Failure(NamedTuple):
    seed: int
    text: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.text}\n    what happened: python -m tests.simulation --seed {self.seed}"


class Outcome(NamedTuple):
    seeds: int
    lives: int
    records: int
    operations: int
    failures: list[Failure]


def run_seeds(seeds: Iterable[int]) -> Outcome:
    """Run them one after the other in this process."""
    done = lives = records = operations = 0
    failures: list[Failure] = []
    for seed in seeds:
        run = Run(seed)
        try:
            run.go()
        except Exception as error:  # noqa: BLE001  # whatever it is, the seed found it
            failures.append(Failure(seed, f"{type(error).__name__}: {error}"))
        done += 1
        lives += run.plan.lives
        records += run.sent
        operations += run.disk.operations
        if done % SEEDS_PER_COLLECTION == 0:
            del run
            gc.collect()
    return Outcome(done, lives, records, operations, failures)


def run_many(
    seeds: Iterable[int], jobs: int, seconds: float | None = None, *, until_failure: bool = False
) -> Iterator[Outcome]:
    """Run them in several processes; after so many seconds, or the first failure, begin nothing new."""
    source = iter(seeds)
    pieces = iter(lambda: list(itertools.islice(source, SEEDS_PER_TASK)), [])
    deadline = None if seconds is None else time.monotonic() + seconds
    with ProcessPoolExecutor(jobs) as pool:
        tasks: set[Future[Outcome]] = set()
        while True:
            late = deadline is not None and time.monotonic() > deadline
            while not late and len(tasks) < 2 * jobs and (piece := next(pieces, None)):
                tasks.add(pool.submit(run_seeds, piece))
            if not tasks:
                return
            done, tasks = wait(tasks, return_when=FIRST_COMPLETED)
            for task in done:
                if until_failure and task.result().failures:
                    deadline = 0.0
                yield task.result()


def tell_one(seed: int, *, operations: bool) -> int:
    """Run one seed, and print what happened in it."""
    run = Run(seed, tracing=True)
    failed = 0
    try:
        run.go()
    except Exception:  # noqa: BLE001  # it is what is to be shown
        failed = 1
        run.story.append(traceback.format_exc())
    if operations:
        for number, line in enumerate(run.disk.journal()):
            print(number, *line)
    print(run.plan)
    print(*run.story, sep="\n")
    print(f"seed {seed}: {'failed' if failed else 'sound'}, digest {run.disk.digest:016x}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one, and tell what happened")
    parser.add_argument("--operations", action="store_true", help="with --seed: also every operation of the disk")
    parser.add_argument(
        "--seeds", default="0:1000", help="run a range, FIRST:END; without END until --seconds are over"
    )
    parser.add_argument("--seconds", type=float, help="begin nothing new after so long")
    parser.add_argument("--until-failure", action="store_true", help="begin nothing new after the first failure")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    plant()
    if options.seed is not None:
        return tell_one(options.seed, operations=options.operations)
    first, _, end = options.seeds.partition(":")
    if not end and options.seconds is None:
        parser.error("a range without an end needs --seconds")
    seeds = range(int(first), int(end)) if end else itertools.count(int(first))
    return summarize(run_many(seeds, options.jobs, options.seconds, until_failure=options.until_failure))


def summarize(outcomes: Iterable[Outcome]) -> int:
    """Print progress, failures and the sum. 1 if anything failed."""
    started = time.monotonic()
    total = Outcome(0, 0, 0, 0, [])
    for outcome in outcomes:
        for failure in outcome.failures[: max(FAILURES_SHOWN - len(total.failures), 0)]:
            print(f"\r{failure}", flush=True)
        total = Outcome(*(a + b for a, b in zip(total, outcome, strict=True)))  # type: ignore[operator]
        rate = total.seeds / (time.monotonic() - started)
        print(
            f"\r{total.seeds:,} seeds, {rate:,.0f}/s, {len(total.failures)} failed ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    seconds = time.monotonic() - started
    print(
        f"\r{total.seeds:,} seeds: {total.lives:,} lives, {total.records:,} records, {total.operations:,} operations "
        f"of the disk, in {seconds:,.0f} s: {total.seeds / seconds:,.0f} seeds/s, {total.lives / seconds:,.0f} "
        f"lives/s; {len(total.failures):,} failed"
    )
    return 1 if total.failures else 0
