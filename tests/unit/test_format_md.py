"""FORMAT.md says what the code does: its tables, examples and programs are compared with it."""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt.headers import RESERVED, message_headers
from gateway_adapters.rtsp.access_units import CODEC_NAMES, AccessUnit
from gateway_adapters.rtsp.recorder import Recorder
from gateway_native import batch, summary, watermark

from gateway.clock import NS_PER_MS
from gateway.log import key_frames, layout
from tests.support import rtp_packets
from tests.support.cameras import cameras, send
from tests.support.native import wait_until
from tests.support.partitions import T0, Partition, make_batches
from tests.support.recording import Recording

TEXT = Path(layout.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
EXAMPLE = [(T0, b"a/t", b"21.5", [("qos", b"1")]), (T0 + 7, b"a/t", None, [])]


def block_after(words: str, language: str = "") -> str:
    """The first fenced block of that language behind `words`."""
    text = TEXT[TEXT.index(words) :]
    match = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def table_after(words: str) -> list[list[str]]:
    """The cells of the first table behind `words`, without its heading."""
    rows: list[list[str]] = []
    for line in TEXT[TEXT.index(words) :].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def hex_dump(words: str) -> bytes:
    """A hex dump's bytes; the addresses at its left must be right."""
    data = b""
    for line in block_after(words).splitlines():
        address, _, content = line.partition("  ")
        assert int(address, 16) == len(data)
        data += bytes.fromhex(content)
    return data


def fields(words: str) -> list[tuple[int, str]]:
    """Position and type of each field in a layout such as the batch's."""
    return [(int(at), kind) for at, kind in re.findall(r"^ {4,6}(\d+)  (\w+(?: B)?)", block_after(words), re.MULTILINE)]


def width(kind: str) -> int:
    """Bytes of ``i32`` and of ``16 B``."""
    return int(kind[1:]) // 8 if kind[0] in "iu" else int(kind.split(maxsplit=1)[0])


def test_batch_example_is_what_the_encoder_writes() -> None:
    """The worked example is, byte for byte, what the encoder makes of the records it names."""
    assert hex_dump("Two records at offsets 5 and 6") == batch.encode(EXAMPLE, 5)


def test_batch_example_is_explained_byte_by_byte() -> None:
    """The table below the example goes through all of its bytes in order and leaves none out."""
    data = batch.encode(EXAMPLE, 5)
    position = 0
    for at, content, _ in table_after("Two records at offsets 5 and 6"):
        piece = bytes.fromhex(content.replace("`", ""))
        assert int(at) == position
        assert data[position : position + len(piece)] == piece
        position += len(piece)
    assert position == len(data)


def test_watermark_example_is_what_the_encoder_writes() -> None:
    """The worked example of the watermark is what the code makes of the numbers above it."""
    mark = watermark.Watermark(3, 0, 90, 7, flags=watermark.INDEXES_WHOLE)
    assert hex_dump("Epoch 3, 90 bytes") == watermark.encode(mark)


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("## 3. Record batch", batch.HEADER_BYTES),
        ("## 5. Watermark", watermark.BYTES),
        ("## 6. Summ", summary.BYTES),
        ("### Key frames", len(key_frames.encode(0, 0, 0, b""))),
        ("and each entry is", key_frames.ENTRY_BYTES),
    ],
)
def test_positions_are_the_sums_of_the_widths(words: str, end: int) -> None:
    """Each field of a layout stands where the one before it ends, and the last ends where the code says."""
    at = 0
    found = [(position, kind) for position, kind in fields(words) if kind != "record"]
    for position, kind in found:
        assert position == at
        at += width(kind)
    assert at == end


def test_batch_layout_is_the_one_that_the_code_reads() -> None:
    """Types in the order of the document give the header that segments are read with."""
    codes = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u32": "I"}
    kinds = [codes[kind] for _, kind in fields("## 3. Record batch") if kind in codes]
    values = struct.unpack_from(">" + "".join(kinds), batch.encode(EXAMPLE, 5))
    assert values == (5, 79, 0, 2, 0x51F8BB1B, 0, 1, T0, T0 + 7, -1, -1, -1, 2)


def test_key_frame_entries_are_laid_out_as_documented(tmp_path: Path) -> None:
    """Found in a segment, each number stands where the document says, in its type."""
    headers = [("codec", b"h264"), ("keyframe", b"1")]
    data = [batch.encode([(T0 + at, b"gate-1", b"x" * 99, headers)], at) for at in (7, 8)]
    Partition(tmp_path).add(data, base=7, sealed=False)
    search = key_frames.Search(tmp_path, 7)
    while search.step(key_frames.LOG_BYTES_MAX, 9):
        pass
    codes = {"i64": "q", "u32": "I"}
    kinds = "<" + "".join(codes[kind] for _, kind in fields("and each entry is"))
    second = struct.unpack_from(kinds, search.found.entries, struct.calcsize(kinds))
    assert second == (len(data[0]), 1, T0 + 8, len(data[1]), batch.crc32c(b"gate-1"))


@pytest.mark.parametrize(
    ("words", "encode"),
    [
        ("## 5. Watermark", lambda values: watermark.encode(watermark.Watermark(*values))),
        ("## 6. Summ", lambda values: summary.encode(summary.Summary(*values))),
    ],
)
def test_small_files_are_laid_out_as_documented(words: str, encode: Callable[[list[int]], bytes]) -> None:
    """Numbers in the order of the document stand where it says, in its types, little-endian, the checksum last."""
    codes = {"i64": "q", "u64": "Q", "u32": "I", "8 B": "8s"}
    kinds = [codes[kind] for _, kind in fields(words)]
    values = list(range(11, 11 + sum(kind != "8s" for kind in kinds) - 1))
    data = encode(values)
    found = struct.unpack("<" + "".join(kinds), data)
    assert [value for value in found if not isinstance(value, bytes)] == [*values, batch.crc32c(data[:-4])]


def test_meta_json_has_the_documented_keys(tmp_path: Path) -> None:
    """Every key of meta.json is explained, and no other."""
    layout.prepare(tmp_path, "plant-7", "Europe/Berlin")
    keys = [row[0].strip("`") for row in table_after("**meta.json** is one JSON object")]
    assert tuple(keys) == layout.Meta._fields


def test_mqtt_headers_are_those_in_the_table() -> None:
    """Names, order and values of a message that has everything; and just these names are kept from senders."""
    names = [row[0].strip("`") for row in table_after("Records of MQTT")]
    headers = message_headers(
        qos=1, retain=True, dup=True, will=True, payload_format=1, message_expiry=60, content_type="ä",
        response_topic="a/b", correlation_data=b"\0", user_properties=[("line", "3"), ("qos", "x")],
    )  # fmt: skip
    assert [name for name, _ in headers] == [*names[:-1], "line", "user.qos"]
    more = [row[0].strip("`") for row in table_after("What a listener or a native subscriber recorded may have")]
    assert {*names[:-1], *more} == RESERVED
    assert dict(headers)["content-type"] == b"%C3%A4"


def test_camera_headers_are_those_in_the_table(tmp_path: Path) -> None:
    """Names and order in a record that has everything that libav tells, and every codec that can be recorded."""
    rows = [row for row in table_after("Records of cameras") if row[0] not in {"`lost_packets`", "`damaged`"}]
    with closing(Recording(tmp_path)) as recording:
        recorder = Recorder(
            "gate-1",
            "h264",
            ring=recording.ring("camera"),
            partition=recording.partition("gate-1"),
            record_bytes_max=200,
            logger=logging.getLogger("test"),
        )
        recorder.begin_run(T0 * NS_PER_MS)
        assert not recorder.put(AccessUnit(bytes(300), True, 0, T0 * NS_PER_MS))
        assert recorder.put(AccessUnit(b"picture", True, 3000, T0 * NS_PER_MS, source_time_ns=T0 * NS_PER_MS))
        ((_, _, _, _, headers),) = recording.records("gate-1")
    assert [name for name, _ in headers] == [row[0].strip("`") for row in rows]
    assert dict(headers)["run"] == str(T0).encode()
    assert re.findall("`(.+?)`", rows[0][1]) == list(CODEC_NAMES.values())


def test_native_camera_headers_are_those_in_the_table(tmp_path: Path) -> None:
    """Names and order in a record of the native engine that has everything."""
    rows = table_after("Records of cameras")
    sets, key = [b"\x67\x42\x00\x1f", b"\x68\xce"], b"\x65\x88key"
    sent = rtp_packets.packets([[key + bytes(200)], [b"\x41\x9a"], [key]])
    with cameras(tmp_path) as (it, recording):
        camera = it.camera("gate-1", record_bytes_max=200)
        theirs, handle = it.connect(camera, parameter_sets=sets)
        theirs.sendall(rtp_packets.sender_report(0, T0 * NS_PER_MS))
        send(theirs, [sent[0], sent[2]])  # one is too large, one is missing
        wait_until(lambda: camera.statistics["units"] == 1, "the second key frame")
        it.remove(handle)
        ((_, _, _, _, headers),) = recording.records("gate-1")
    assert [name for name, _ in headers] == [row[0].strip("`") for row in rows]
    assert dict(headers)["run"] == str(camera.run).encode()
    assert (dict(headers)["lost"], dict(headers)["lost_packets"]) == (b"1", b"1")


def test_program_for_kafkas_parsers_reads_a_segment(tmp_path: Path) -> None:
    """The program in the document, run as it stands, finds every record of a segment with kafka-python and aiokafka."""
    partition = Partition(tmp_path / "s-0")
    partition.add(make_batches(4))
    program = block_after("## 8. Verifying", "python")
    other = re.search(r"`(from aiokafka[^`]+)`", TEXT)
    assert other is not None
    for text in (program, re.sub(r"^from kafka.*$", " ".join(other[1].split()), program, flags=re.MULTILINE)):
        variables: dict[str, Any] = {"path": partition.log(0)}
        with warnings.catch_warnings():  # importing kafka reads resources in a way that Python calls old
            warnings.simplefilter("ignore", DeprecationWarning)
            exec(text, variables)  # noqa: S102  # the document's own program
        assert [row[0] for row in variables["rows"]] == list(range(12))
        assert variables["rows"][5][1:4] == (T0 + 5, b"a/b", b"5".ljust(20, b"."))


@pytest.mark.parametrize("number", range(1, 10))
def test_sections_referred_to_are_there(number: int) -> None:
    """Modules and the document itself refer to sections by number."""
    assert len(re.findall(rf"^## {number}\. ", TEXT, re.MULTILINE)) == 1
