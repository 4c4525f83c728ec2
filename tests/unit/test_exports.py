"""Records in the formats of others: each file's own reader finds what was recorded; an interrupted export goes on."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_native import batch
from mcap.reader import make_reader

import gateway
from gateway.errors import GatewayError, UsageError
from gateway.log.gap import GAP_HEADER
from gateway.log.layout import prepare
from gateway.replay.exports import exporter, mcap, tables
from gateway.replay.exports.writers import WholeFile
from tests.support.partitions import Partition

# 2023-11-14 22:13:20 UTC; in Berlin midnight is 2,800 s later.
T0 = 1_700_000_000_000
HOUR_MS = 3_600_000
GAP = [(GAP_HEADER, b"reason=overload count=2 bytes=7 first=1 last=2 source=x")]
ROWS: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
    (T0, b"plant/a", b'{"t": 21.5}', []),
    (T0 + 1, b"plant/b", b" 3.25 ", [("qos", b"1")]),
    (T0 + 2, b"plant/b", b"\x00\xff binary", [("user", b"one"), ("user", b"\xfe")]),
    (T0 + 3, b"plant/c", b"", []),
    (T0 + 4, b"\xffkey", b"NaN", []),
    (T0 + 5, None, None, GAP),
    (T0 + HOUR_MS, b"plant/a", b"null", []),
    (T0 + 2 * HOUR_MS, b"plant/a", b'a,"b"\n', []),
    (T0 + 40 * HOUR_MS, b"plant/d", b"[1, 2]", []),
]
SOURCE_TIME = ("source_time", b"1699999999000000001")
FRAMES = [
    (T0 + 1, b"gate-1", b"\0\0\0\1\x65key", [("codec", b"h264"), ("keyframe", b"1"), SOURCE_TIME]),
    (T0 + 3, b"gate-1", b"\0\0\0\1\x41next", [("codec", b"h264")]),
    (T0 + 5, b"gate-2", b"\xff\xd8 jpeg", [("codec", b"jpeg"), ("keyframe", b"1")]),
]  # fmt: skip


@pytest.fixture(name="log")
def make_log(tmp_path: Path) -> gateway.Log:
    data = tmp_path / "data"
    prepare(data, "test", "Europe/Berlin")
    for name, rows in (("telemetry", ROWS), ("gates", FRAMES)):
        made = Partition(data / f"{name}-0")
        made.add([batch.encode([row], number) for number, row in enumerate(rows)], base=0, sealed=False)
        made.mark_all()
    return gateway.open(data)


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return [
        (
            row["offset"],
            row["timestamp"].value // 1_000_000 if hasattr(row["timestamp"], "value") else row["timestamp"],
            row["key"],
            row["value"],
            row["headers"],
        )
        for row in table.set_column(1, "timestamp", table["timestamp"].cast(pa.int64())).to_pylist()
    ]


def _expected(log: gateway.Log, stream: str = "telemetry") -> list[tuple[Any, ...]]:
    return [
        (record.offset, record.timestamp_ms * 1_000_000, record.key, record.value, list(record.headers))
        for record in log[stream].read()
    ]


def test_parquet_and_arrow_have_every_record(log: gateway.Log, tmp_path: Path) -> None:
    """Offsets, times, keys, values and headers, byte for byte, in pyarrow's own readers."""
    report = log.export(tmp_path / "x.parquet", "telemetry")
    assert (report.records, report.files, report.offsets) == (9, 1, {"telemetry": (0, 9)})
    assert report.bytes == (tmp_path / "x.parquet").stat().st_size
    log.export(tmp_path / "x.arrow", "telemetry")
    assert _rows(pq.ParquetFile(tmp_path / "x.parquet").read()) == _expected(log)
    with pa.ipc.open_file(tmp_path / "x.arrow") as reader:
        assert _rows(reader.read_all()) == _expected(log)
        assert reader.schema == tables.SCHEMA


def test_groups_have_a_bound(log: gateway.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory at a time does not grow with the export."""
    monkeypatch.setattr(tables, "GROUP_ROWS_MAX", 4)
    log.export(tmp_path / "x.parquet", "telemetry")
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 1]
    assert _rows(file.read()) == _expected(log)


def test_csv_and_json_lines_have_every_record(log: gateway.Log, tmp_path: Path) -> None:
    """Python's own csv and json read them; what is no text comes in base64."""
    log.export(tmp_path / "x.csv", "telemetry")
    log.export(tmp_path / "x.jsonl", "telemetry")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    objects = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    for line, shown, (offset, time_ns, key, value, _) in zip(lines, objects, _expected(log), strict=True):
        assert int(line["offset"]) == shown["offset"] == offset
        moment = datetime.fromisoformat(line["timestamp"])
        assert shown["timestamp"] == line["timestamp"]
        assert round(moment.timestamp() * 1000) == time_ns // 1_000_000
        assert (line["value"].encode() or base64.b64decode(line["value_base64"])) == (value or b"")
        given = shown.get("key_base64", shown.get("key"))
        assert (given is None and key is None) or given.encode() == key or base64.b64decode(given) == key


def _messages(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    with path.open("rb") as file:
        yield from make_reader(file, validate_crcs=True).iter_messages()


def test_mcap_has_every_record_of_several_streams(log: gateway.Log, tmp_path: Path) -> None:
    """mcap's own reader finds payloads as they were, on topics, in the order of time."""
    report = log.export(tmp_path / "x.mcap")
    assert report.records == len(ROWS) + len(FRAMES)
    found = list(_messages(tmp_path / "x.mcap"))
    times = [message.log_time for _, _, message in found]
    assert times == sorted(times)
    sensors = {m.sequence: (s, c, m) for s, c, m in found if c.metadata["stream"] == "telemetry"}
    for offset, (time_ms, key, value, _) in enumerate(ROWS):
        schema, channel, message = sensors[offset]
        assert message.log_time == message.publish_time == time_ms * 1_000_000
        if key is None:
            assert channel.topic == "/gateway/gaps/telemetry"
            assert json.loads(message.data)["count"] == 2
            continue
        assert channel.topic == key.decode("utf-8", "backslashreplace")
        data = message.data
        if schema is not None and schema.name == "gateway.Value":
            assert isinstance(json.loads(data), dict)
            data = data[len(mcap.VALUE_PREFIX) : -len(mcap.VALUE_SUFFIX)]
        assert data == value
        encodings = {0: "json", 1: "json", 2: "", 3: "", 4: "", 6: "json", 7: "", 8: "json"}
        assert channel.message_encoding == encodings[offset]


def test_pictures_in_mcap_are_what_foxglove_decodes(log: gateway.Log, tmp_path: Path) -> None:
    """A protobuf library that knows nothing of us decodes the messages by the descriptors in the file."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    log.export(tmp_path / "x.mcap", "gates")
    decoded = []
    for schema, channel, message in _messages(tmp_path / "x.mcap"):
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
            pool.Add(file)  # type: ignore[no-untyped-call]
        kind: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))
        picture = kind.FromString(message.data)
        stamp = picture.timestamp.seconds * 10**9 + picture.timestamp.nanos
        decoded.append((channel.topic, schema.name, picture.frame_id, picture.format, picture.data, stamp))
        assert channel.message_encoding == schema.encoding == "protobuf"
    names = ["foxglove.CompressedVideo"] * 2 + ["foxglove.CompressedImage"]
    assert decoded == [
        (f"/{key.decode()}", name, key.decode(), dict(headers)["codec"].decode(), value, time_ms * 1_000_000)
        for name, (time_ms, key, value, headers) in zip(names, FRAMES, strict=True)
    ]
    published = [message.publish_time for _, _, message in _messages(tmp_path / "x.mcap")]
    assert published[0] == 1_699_999_999_000_000_001


def test_mcap_refuses_more_channels_than_it_has_numbers(
    log: gateway.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing behind."""
    monkeypatch.setattr(mcap, "CHANNELS_MAX", 3)
    with pytest.raises(GatewayError, match="choose some"):
        log.export(tmp_path / "x.mcap")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _read_directory(path: Path, stream: str = "telemetry") -> list[tuple[Any, ...]]:
    files = sorted((path / f"stream={stream}").glob("*/*.parquet"), key=lambda found: found.name)
    return [row for file in files for row in _rows(pq.ParquetFile(file).read())]


def test_a_directory_has_a_file_for_each_day(log: gateway.Log, tmp_path: Path) -> None:
    """Days are the site's, and names carry the first offset; other programs find the columns in the names."""
    out = tmp_path / "lake"
    log.export(out)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.parquet"))
    assert names == [
        "stream=gates/date=2023-11-14/00000000000000000000.parquet",
        "stream=telemetry/date=2023-11-14/00000000000000000000.parquet",
        "stream=telemetry/date=2023-11-15/00000000000000000006.parquet",
        "stream=telemetry/date=2023-11-16/00000000000000000008.parquet",
    ]
    assert _read_directory(out) == _expected(log)
    assert pq.read_table(out).num_rows == len(ROWS) + len(FRAMES)


def test_an_interrupted_export_goes_on(log: gateway.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it ends, also between a file and the note of it: the next run has every record once."""
    monkeypatch.setattr(exporter, "PART_ROWS_MAX", 2)
    finish, save = WholeFile.finish, exporter._Directory._save
    expected = _expected(log)
    for place in range(11):
        out = tmp_path / f"lake-{place}"
        left = [place]

        def fail(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        def failing_finish(self: WholeFile) -> int:
            fail()
            size = finish(self)
            fail()
            return size

        def failing_save(self: Any) -> None:
            fail()
            save(self)

        monkeypatch.setattr(WholeFile, "finish", failing_finish)
        monkeypatch.setattr(exporter._Directory, "_save", failing_save)
        with pytest.raises(KeyboardInterrupt):
            log.export(out, "telemetry")
        monkeypatch.setattr(WholeFile, "finish", finish)
        monkeypatch.setattr(exporter._Directory, "_save", save)
        log.export(out, "telemetry", resume=True)
        assert _read_directory(out) == expected, place
        assert not list(out.rglob(".*.new"))


def test_resuming_brings_an_export_up_to_date(log: gateway.Log, tmp_path: Path) -> None:
    """Records that became durable since are added, as the export was begun; nothing comes twice."""
    made = Partition(log.path / "more-0")
    made.add([batch.encode([(T0 + n, b"k%d" % (n % 2), b"v", [])], n) for n in range(6)], base=0, sealed=False)
    sizes = [len(data) for data in made.segments[0]]
    made.mark(0, sum(sizes[:3]), 3)
    out = tmp_path / "lake"
    log.export(out, "more", keys=["k0"])
    made.mark_all()
    report = log.export(out, "more", resume=True)
    assert (report.records, report.resumed, report.offsets) == (1, True, {"more": (3, 6)})
    assert [row[0] for row in _read_directory(out, "more")] == [0, 2, 4]
    assert log.export(out, "more", resume=True).records == 0
    with pytest.raises(UsageError, match=r"begun with the keys k0"):
        log.export(out, "more", keys=["k1"], resume=True)
    with pytest.raises(GatewayError, match="--resume"):
        log.export(out, "more")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.parquet", {"streams": None}, "holds one stream"),
        ("x.csv", {"streams": "telemetry", "format": "parquet"}, "give one of the two"),
        ("x.csv", {"streams": "telemetry", "resume": True}, "into a directory"),
        ("lake", {"streams": "telemetry", "format": "mcap"}, "for one file"),
        ("lake", {"streams": "telemetry", "format": "excel"}, "no format 'excel'"),
        ("lake", {"streams": []}, "at least one stream"),
        ("none/x.csv", {"streams": "telemetry"}, "does not exist"),
        ("there.csv", {"streams": "telemetry"}, "exists already"),
        ("full", {"streams": "telemetry"}, "is no export"),
    ],
)
def test_what_does_not_go_together_is_said(
    log: gateway.Log, tmp_path: Path, name: str, options: dict[str, Any], words: str
) -> None:
    """One sentence each, before anything is written."""
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GatewayError, match=words):
        log.export(tmp_path / name, **options)
    assert sorted(tmp_path.rglob("*")) == before
    log.export(tmp_path / "there.csv", "telemetry", overwrite=True)
    assert (tmp_path / "there.csv").read_text().startswith("offset,")


def test_ranges_and_progress(log: gateway.Log, tmp_path: Path) -> None:
    """Half-open, by time; progress ends where it said it would."""
    steps: list[tuple[int, int]] = []
    stream = log["telemetry"]
    report = log.export(
        tmp_path / "x.jsonl",
        "telemetry",
        stream.moment(T0 + 1),
        stream.moment(T0 + HOUR_MS),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert report.records == 5
    assert steps[-1] == (5, 5)


def test_an_end_is_where_a_directory_is_gone_on_with(log: gateway.Log, tmp_path: Path) -> None:
    """Records behind --end are in the next run, also of a clock that was set back; one file has what read gives."""
    made = Partition(log.path / "set-back-0")
    times = [0, 10, 20, 5, 30]
    made.add([batch.encode([(T0 + time, b"k", b"v", [])], n) for n, time in enumerate(times)], base=0, sealed=False)
    made.mark_all()
    end = log["set-back"].moment(T0 + 15)
    assert log.export(tmp_path / "x.csv", "set-back", end=end).records == len(list(log["set-back"].read(end=end))) == 3
    out = tmp_path / "lake"
    assert log.export(out, "set-back", end=end).offsets == {"set-back": (0, 2)}
    assert log.export(out, "set-back", resume=True).offsets == {"set-back": (2, 5)}
    assert [row[0] for row in _read_directory(out, "set-back")] == [0, 1, 2, 3, 4]


def test_damage_is_told_and_the_rest_exported(log: gateway.Log, tmp_path: Path) -> None:
    """As reading does: passed over, counted, named."""
    made = Partition(log.path / "broken-0")
    made.add([batch.encode([(T0 + n, b"k", b"value", [])], n) for n in range(5)], base=0, sealed=False)
    made.mark_all()
    made.damage(0, len(made.segments[0][0]) * 2 + 70)
    told: list[object] = []
    report = log.export(tmp_path / "lake", "broken", on_gap=told.append)
    assert (report.records, report.damaged, len(told)) == (4, 1, 1)
    assert [row[0] for row in _read_directory(tmp_path / "lake", "broken")] == [0, 1, 3, 4]
