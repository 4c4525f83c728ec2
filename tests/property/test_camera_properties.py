"""Properties of what the cameras' modules do to bytes and time stamps, whatever those are."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import nal
from gateway.replay.camera_records import CameraRecord
from gateway.replay.timeline import Placed, Timeline, with_decode_times, with_durations
from gateway.simulate.faults import Faults
from gateway.simulate.jpeg import Image
from gateway.simulate.rtp import depacketize, packetize
from gateway.simulate.rtsp_messages import Answer, Interleaved, MalformedRequest, Request, RequestParser
from tests.pictures import T0_MS, FakeStream, encode

# A NAL unit: no start code inside (encoders insert emulation bytes), no zero at the end, a type that may travel alone.
NAL = st.builds(
    lambda kind, body: bytes([kind]) + body.replace(b"\x00\x00", b"\x00\x01").rstrip(b"\x00") + b"\x80",
    st.integers(1, 23).map(lambda kind: kind | 0x60),
    st.binary(max_size=4000),
)
H265_NAL = st.builds(
    lambda kind, body: bytes([kind << 1, 1]) + body + b"\x80", st.integers(0, 47), st.binary(max_size=4000)
)
TEMPLATE = next(record for each in FakeStream().add(encode(1)).records if (record := CameraRecord.of(each)))


@given(st.lists(NAL, max_size=6))
def test_splitting_undoes_joining(nals: list[bytes]) -> None:
    """Any access unit goes through Annex B unchanged, also behind three-byte start codes."""
    assert nal.split(nal.join(nals)) == nals
    assert nal.split(b"".join(b"\x00\x00\x01" + each for each in nals)) == nals


@given(st.binary(max_size=300))
def test_any_bytes_can_be_split(data: bytes) -> None:
    """Rubbish gives some NAL units, none empty, all of them from the input."""
    assert all(each and each in data for each in nal.split(data))


@given(st.binary(min_size=1, max_size=60), st.sampled_from([nal.H264, nal.H265]))
def test_any_bytes_can_pass_for_a_parameter_set(data: bytes, codec: nal.Codec) -> None:
    """Ids and sizes are looked for in what cameras send; nothing they send raises."""
    sps = bytes([7 if codec is nal.H264 else 33 << 1]) + data
    sets = nal.ParameterSets(codec)
    sets.update([sps])
    size = sets.size()
    assert size is None or (0 < size[0] <= 65_536 and 0 < size[1] <= 65_536)


@given(st.lists(NAL, min_size=1, max_size=4), st.integers(3, 1500))
def test_packetisation_loses_nothing(nals: list[bytes], payload_bytes_max: int) -> None:
    """For every limit the payloads fit and give back the NAL units."""
    payloads = packetize(nals, payload_bytes_max)
    assert max(map(len, payloads)) <= payload_bytes_max
    assert depacketize(payloads) == nals


@given(st.lists(H265_NAL, min_size=1, max_size=6), st.integers(8, 1500), st.booleans())
def test_h265_packetisation_loses_nothing(nals: list[bytes], payload_bytes_max: int, aggregate: bool) -> None:
    """The same for H.265, also where small NAL units travel together."""
    payloads = packetize(nals, payload_bytes_max, codec=nal.H265, aggregate=aggregate)
    assert max(map(len, payloads)) <= payload_bytes_max
    assert depacketize(payloads, nal.H265) == nals


@given(st.lists(NAL, min_size=1, max_size=6), st.integers(8, 1500))
def test_aggregation_loses_nothing(nals: list[bytes], payload_bytes_max: int) -> None:
    """STAP-A beside single NAL units and fragments."""
    payloads = packetize(nals, payload_bytes_max, aggregate=True)
    assert max(map(len, payloads)) <= payload_bytes_max
    assert depacketize(payloads) == nals


@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([nal.H264, nal.H265]))
def test_any_payloads_are_read_or_refused(payloads: list[bytes], codec: nal.Codec) -> None:
    """ValueError is the only way out beside NAL units."""
    with contextlib.suppress(ValueError):
        assert all(depacketize(payloads, codec))


@given(st.binary(max_size=300))
def test_any_bytes_can_pass_for_an_image(data: bytes) -> None:
    """ValueError is the only way out beside an image."""
    with contextlib.suppress(ValueError):
        Image.of(b"\xff\xd8" + data)


@given(st.text(max_size=80))
def test_any_query_is_read_or_refused(query: str) -> None:
    """ValueError with a sentence, or faults."""
    with contextlib.suppress(ValueError):
        Faults.parse(query)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_the_request_parser_reads_pieces_as_the_whole(data: bytes, cuts: list[int]) -> None:
    """However the bytes are cut, the same items come out, or the same refusal."""

    def parse(pieces: list[bytes]) -> list[Request | Interleaved | Answer | int]:
        parser, items = RequestParser(), []
        for piece in pieces:
            try:
                items += parser.feed(piece)
            except MalformedRequest as error:
                return [error.status]
        return items

    data += b"\r\n\r\n"
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole, parts = parse([data]), parse(pieces)
    assert whole == parts


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(-5, 200),  # frames the presentation time steps by, often backwards
            st.integers(0, 400),  # ms the receive time steps by
            st.sampled_from([0, 0, 0, 0, 1]),  # a new run
            st.sampled_from([True, True, True, False]),  # with a time stamp
        ),
        max_size=60,
    )
)
def test_every_time_line_can_be_muxed(steps: list[tuple[int, int, int, bool]]) -> None:
    """Whatever cameras stamp: decode times rise and durations are positive; without reordering, dts is pts."""
    records = []
    pts, time_ms, run = 1_000_000, T0_MS, 0
    for frames, ms, new_run, stamped in steps:
        pts, time_ms, run = pts + frames * 3600, time_ms + ms, run + new_run
        records.append(
            replace(TEMPLATE, pts=pts if stamped else None, timestamp_ms=time_ms, run=str(run), key=bool(new_run))
        )
    timeline = Timeline()
    placed = [each for record in records if (each := timeline.place(record)) is not None]
    assert len(placed) + timeline.left_out == len(records)
    done = list(with_durations(with_decode_times(iter(placed))))
    assert [id(each) for each in done] == [id(each) for each in placed]
    assert all(a.dts < b.dts for a, b in itertools.pairwise(done))
    assert all(each.duration > 0 and each.dts <= each.pts for each in done)
    if all(a.pts < b.pts for a, b in itertools.pairwise(done)):
        assert [each.dts for each in done] == [each.pts for each in done]


@given(st.data(), st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_reordering_within_bounds_keeps_every_stamp(data: st.DataObject, intervals: list[int]) -> None:
    """Pictures sent in another order than shown, behind their key frame: no stamp moves, none is decoded too late."""
    ordered = [100 * sum(intervals[:n]) for n in range(len(intervals) + 1)]
    sent = [ordered[0]]
    for at in range(1, len(ordered), 8):
        sent += data.draw(st.permutations(ordered[at : at + 8]))
    done = list(with_decode_times(iter([Placed(TEMPLATE, value) for value in sent])))
    assert [each.pts for each in done] == sent
    assert all(each.dts <= each.pts for each in done)
