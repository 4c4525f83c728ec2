"""The key index of a segment: reading through it gives what walking gives, whatever is wrong with it."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from gateway_native import batch, key_index

from gateway.errors import DamageError
from gateway.log import keyed
from gateway.log.key_index import KeyIndex, KeyIndexDamaged, key_index_path, literal_prefixes
from gateway.log.key_index_build import build_key_index, missing_key_indexes
from gateway.log.partition import PartitionReader
from gateway.log.repair import repair
from gateway.log.verify import verify
from tests.support.partitions import T0, Partition, make_batch

KEYS = [f"plant/line-{line}/{sensor}" for line in range(20) for sensor in ("temperature", "pressure", "speed")]
FILTERS = [
    ["plant/line-3/speed"],
    ["plant/line-3/speed", b"plant/line-4/speed"],
    ["plant/+/speed"],
    ["plant/line-1/#"],
    ["plant/line-19"],
    ["#"],
    ["+/line-7/+", "plant/line-7/#"],
    [b""],
    ["nothing/there"],
    [b"plant/line-1"],
]


@pytest.fixture(autouse=True)
def _small_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of tests are small: use the index for them, as for large ones."""
    monkeypatch.setattr("gateway.log.partition.LOG_BYTES_MIN", 1)
    monkeypatch.setattr(keyed, "BYTES_PER_RECORD_MIN", 1)
    monkeypatch.setattr(keyed, "BYTES_PER_KEY", 1)


def _rows(seed: int, count: int, base: int) -> list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    chosen = random.Random(seed)
    rows: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
    for number in range(count):
        key: bytes | None = chosen.choice(KEYS).encode()
        kind = chosen.random()
        if kind < 0.05:
            key = None
        elif kind < 0.1:
            key = chosen.choice([b"", b"plant", b"plant/line-1", b"$SYS/line-1", b"\xff\x00"])
        value = None if kind > 0.97 else chosen.randbytes(chosen.choice([0, 5, 60, 700]))
        headers = [("qos", b"1")] if kind > 0.5 else []
        rows.append((T0 + base + number, key, value, headers))
    return rows


def _partition(path: Path, *, batches: int = 40, records: int = 25, seed: int = 1) -> Partition:
    """One sealed segment of mixed keys, and an active one with one batch."""
    made = Partition(path)
    datas = [batch.encode(_rows(seed + n, records, n * records), n * records) for n in range(batches)]
    made.add(datas)
    made.add([make_batch(batches * records)], sealed=False)
    made.mark_all()
    return made


def _read(directory: Path, **selection: object) -> list[batch.Row]:
    found = PartitionReader(directory).chunks(batch.Selection(**selection))  # type: ignore[arg-type]
    return [row for rows in found for row in rows]


def _named(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each use of an index names."""
    used: list[int] = []
    original = keyed.NamedRecords.__init__

    def counting(self: keyed.NamedRecords, segment: object, selection: object, places: list[object]) -> None:
        used.append(len(places))
        original(self, segment, selection, places)  # type: ignore[arg-type]

    monkeypatch.setattr(keyed.NamedRecords, "__init__", counting)
    return used


@pytest.mark.parametrize("keys", FILTERS)
@pytest.mark.parametrize("records_max", [10**6, 60])
def test_reading_by_index_equals_walking(
    tmp_path: Path, keys: list[str | bytes], records_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every filter, in one part or many, the same rows come in the same order, and the index was used."""
    made = _partition(tmp_path / "s-0")
    ranges = [
        {},
        {"offset_from": 333, "offset_to": 700},
        {"time_from": T0 + 500, "time_to": T0 + 640},
        {"offset_from": 990},
        {"offset_to": 1},
    ]
    walked = [_read(made.directory, keys=keys, **each) for each in ranges]
    build_key_index(made.directory, 0, records_max=records_max)
    used = _named(monkeypatch)
    assert [_read(made.directory, keys=keys, **each) for each in ranges] == walked
    assert used
    assert keys[0] in {b"", "nothing/there", "plant/line-19"} or any(walked[0])


def test_a_key_with_few_records_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one key touches a few pages of its segment, not the rest."""
    made = Partition(tmp_path / "s-0")
    datas = [make_batch(n * 50, 50, value_bytes=2000, key=b"rare" if n in {3, 17} else b"often") for n in range(20)]
    made.add(datas)
    made.add([make_batch(1000)], sealed=False)
    made.mark_all()
    build_key_index(made.directory, 0)
    taken: list[int] = []
    from gateway.log.segment import Segment

    read = Segment.read

    def counting(self: Segment, position: int, size: int) -> bytes:
        data = read(self, position, size)
        taken.append(len(data))
        return data

    monkeypatch.setattr(Segment, "read", counting)
    rows = _read(made.directory, keys=["rare"])
    assert [row[0] for row in rows] == [*range(150, 200), *range(850, 900)]
    assert sum(taken) < 2 * sum(len(datas[n]) for n in (3, 17))


def test_damage_in_the_index_costs_nothing_but_time(tmp_path: Path) -> None:
    """Whichever byte of an index is wrong, the records are the same: what is not sound is not believed."""
    made = _partition(tmp_path / "s-0", batches=4, records=8)
    path = key_index_path(made.directory, 0)
    keys = ["plant/+/speed"]
    walked = _read(made.directory, keys=keys)
    build_key_index(made.directory, 0, records_max=16)
    sound = path.read_bytes()
    assert _read(made.directory, keys=keys) == walked
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x11]) + sound[at + 1 :])
        assert _read(made.directory, keys=keys) == walked, f"byte {at}"
    for size in range(0, len(sound), 7):
        path.write_bytes(sound[:size])
        assert _read(made.directory, keys=keys) == walked, f"cut at {size}"


def test_an_index_of_another_log_is_not_used(tmp_path: Path) -> None:
    """A copy that mixed up files, or a segment written again: the first and the last batch tell."""
    one, other = _partition(tmp_path / "one-0", seed=1), _partition(tmp_path / "two-0", seed=7)
    build_key_index(one.directory, 0)
    walked = _read(other.directory, keys=["plant/line-3/#"])
    key_index_path(other.directory, 0).write_bytes(key_index_path(one.directory, 0).read_bytes())
    assert _read(other.directory, keys=["plant/line-3/#"]) == walked


def test_a_record_that_rotted_is_reported_as_by_walking(tmp_path: Path) -> None:
    """A flipped bit in a record that the index names is damage, never a wrong value; the others are read."""
    made = _partition(tmp_path / "s-0")
    build_key_index(made.directory, 0)
    keys = ["plant/line-3/+"]
    sound = _read(made.directory, keys=keys)
    batches = made.segments[0]
    rotten = next(row for row in sound if row[0] >= 500 and row[3] and len(row[3]) >= 60)
    position = made.log(0).read_bytes().index(rotten[3] or b"?")
    made.damage(0, position + 3)
    with pytest.raises(DamageError):
        _read(made.directory, keys=keys)
    damages: list[object] = []
    found = PartitionReader(made.directory).chunks(batch.Selection(keys=keys), on_damage=damages.append)
    lost = rotten[0] // 25
    assert [row for rows in found for row in rows] == [row for row in sound if row[0] // 25 != lost]
    assert len(damages) == 1
    assert len(batches[lost])


def test_what_follows_damage_is_walked(tmp_path: Path) -> None:
    """An index made of a damaged log covers what lies before, and hides neither the damage nor what follows."""
    made = _partition(tmp_path / "s-0")
    position = sum(map(len, made.segments[0][:20]))
    made.damage(0, position + 100)
    damages: list[object] = []
    build_key_index(made.directory, 0)
    with KeyIndex(made.directory, 0) as index:
        assert [part.log_to for _, part in index.parts()] == [position]
    found = PartitionReader(made.directory).chunks(batch.Selection(keys=["#"]), on_damage=damages.append)
    offsets = {row[0] for rows in found for row in rows}
    assert max(offsets) >= 999
    assert not offsets & set(range(500, 525))
    assert len(damages) == 1


def test_batches_that_cannot_be_indexed_end_the_index(tmp_path: Path) -> None:
    """A compressed or control batch, or one with times of the log's own, is left to the walk."""
    for attribute in (1, 8, 32):
        data = bytearray(make_batch(3))
        data[22] |= attribute
        data[17:21] = struct.pack(">I", batch.crc32c(bytes(data[21:])))
        builder = key_index.Builder(0)
        both = make_batch(0) + bytes(data)
        assert builder.add(both, len(both), 0) == len(make_batch(0))
        assert key_index.parse_part(builder.finish()) is not None
        assert builder.empty


def test_prefixes_cover_their_filters() -> None:
    """Where to look for a filter's keys, none twice, and "a/#" also at "a"."""
    assert literal_prefixes(batch.KeyFilter(["a/b/#", "a/b/c", b"x+", "a/+/c", "q/r"])) == [
        (b"a/", False),
        (b"q/r", True),
        (b"x+", True),
    ]
    assert literal_prefixes(batch.KeyFilter(["a/#", "a"])) == [(b"a", False)]
    assert literal_prefixes(batch.KeyFilter(["#"])) == [(b"", False)]


def test_missing_ones_are_those_of_sealed_segments(tmp_path: Path) -> None:
    """The active segment has none; the newest of the others comes first."""
    made = Partition(tmp_path / "s-0")
    for base in (0, 3, 6):
        made.add([make_batch(base)])
    made.add([make_batch(9)], sealed=False)
    made.mark_all()
    assert missing_key_indexes(made.directory) == [6, 3, 0]
    build_key_index(made.directory, 3)
    assert missing_key_indexes(made.directory) == [6, 0]
    assert not list(made.directory.glob(".*"))


def test_building_fails_whole(tmp_path: Path) -> None:
    """Of a segment that is gone there is no index, and no half of one."""
    made = _partition(tmp_path / "s-0")
    with pytest.raises(FileNotFoundError):
        build_key_index(made.directory, 12345)
    assert not list(made.directory.glob(".*"))
    assert not list(made.directory.glob("*.keys"))


def test_verify_names_a_damaged_index_and_repairs_it(tmp_path: Path) -> None:
    """It is no loss: repair makes it again from the log."""
    from gateway.log.layout import prepare

    prepare(tmp_path, "here", "UTC")
    made = _partition(tmp_path / "s-0")
    build_key_index(made.directory, 0)
    assert verify(tmp_path).sound
    path = key_index_path(made.directory, 0)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + b"?")
    with KeyIndex(made.directory, 0) as index, pytest.raises(KeyIndexDamaged, match="CRC"):
        index.check()
    report = verify(tmp_path)
    assert [damage.path for damage in report.damages] == [path]
    after, done = repair(tmp_path)
    assert after.sound
    assert done == [f"{path}: made again."]
    with KeyIndex(made.directory, 0) as index:
        assert sum(part.records for _, part in index.parts()) == sum(
            row[2] is not None for row in _read(made.directory) if row[0] < 1000
        )


def test_readers_need_no_permission_to_write(tmp_path: Path) -> None:
    """Reading makes no index, also where there is none."""
    made = _partition(tmp_path / "s-0")
    before = sorted(made.directory.iterdir())
    assert _read(made.directory, keys=["plant/line-3/speed"])
    assert sorted(made.directory.iterdir()) == before
