"""A real Kafka broker takes a stream that a gateway wrote, under the id of a topic of its own, and serves it all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gateway
from gateway.replay.log import Stream
from tests.support import kafka_clients as clients
from tests.support.gateway_process import GatewayProcess
from tests.support.kafka_broker import KraftBroker
from tests.support.kafka_jars import resolve
from tests.support.kafka_traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

MESSAGES = 20_000
TOPICS = ("stopped", "trimmed", "killed")
# Mapped, so that the active segment ends with zeros after a kill.
SETTINGS = """
[disk]
reserve = "1MiB"
append = "mapped"
[streams.telemetry]
segment_size = "1MiB"
linger = "1ms"
"""
# Files that may lie in a partition's directory and that Kafka does not know.
OUR_FILES = ("watermark", "manifest", "00000000000000000000.sums", "00000000000000000777.log.cut", ".manifest.new")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a stopped broker that has the topics, all of them empty."""
    resolve()
    directory = tmp_path_factory.mktemp("cluster")
    broker = KraftBroker(directory)
    broker.format()
    with broker:
        clients.create_topics(broker.address, TOPICS)
    return directory


@pytest.fixture
def broker(cluster: Path, tmp_path: Path) -> KraftBroker:
    """A stopped broker with the topics, for this test alone."""
    shutil.copytree(cluster, tmp_path / "broker")
    return KraftBroker(tmp_path / "broker")


def _rows(data: Path, first: int = 0) -> list[clients.Row]:
    rows = gateway.open(data)["telemetry"].read(offsets=(first, None)).rows()
    return [clients.Row(*row[:4], tuple(row[4])) for row in rows]


def _serves(broker: KraftBroker, topic: str, expected: list[clients.Row]) -> None:
    """Every record, and nothing else, to both clients; records written from now on follow."""
    end = expected[-1].offset + 1
    assert clients.bounds(broker.address, topic) == (expected[0].offset, end)
    assert clients.read_all(broker.address, topic) == expected
    assert clients.read_all_with_kcat(broker.address, topic) == expected
    assert clients.produce(broker.address, topic, [b"first", b"second"]) == [end, end + 1]
    rows = clients.read_all(broker.address, topic)
    assert rows[: len(expected)] == expected
    assert [(row.offset, row.value) for row in rows[len(expected) :]] == [(end, b"first"), (end + 1, b"second")]


def _finds_times(broker: KraftBroker, topic: str, stream: Stream, rows: list[clients.Row]) -> None:
    """The broker's look-up by time and ours name the same offsets."""
    probes = {rows[index * (len(rows) - 1) // 20].timestamp_ms + step for index in range(21) for step in (-1, 0, 1)}
    times = sorted({0, *probes, rows[-1].timestamp_ms + 60_000})
    ours = [stream.reader.offset_of_time(moment) for moment in times]
    theirs = clients.offsets_for_times(broker.address, topic, times)
    end = rows[-1].offset + 1
    assert [answer[0] if answer else end for answer in theirs] == ours
    first = rows[0].offset
    assert all(answer == (answer[0], rows[answer[0] - first].timestamp_ms) for answer in theirs if answer)


def test_a_stopped_gateways_stream_is_served_by_a_broker(tmp_path: Path, broker: KraftBroker) -> None:
    """Segments and indexes are taken as they are, whether the first segment is still there or not, and kept so."""
    with GatewayProcess(tmp_path / "gateway", extra_toml=SETTINGS) as process:
        process.start()
        Traffic().publish(process.port, MESSAGES)
        assert process.end() == 0
    rows = _rows(process.data)
    partition = process.data / "telemetry-0"
    for name in OUR_FILES:
        if not (partition / name).exists():
            (partition / name).write_bytes(b"nothing that Kafka knows")
    bases = sorted(int(path.stem) for path in partition.glob("*.log"))
    assert len(bases) > 3
    broker.replace_files("stopped", partition.iterdir())
    later = (path for path in partition.iterdir() if not path.name.startswith(f"{0:020d}."))
    broker.replace_files("trimmed", later)
    with broker:
        assert "rebuilding index" not in broker.output
        _finds_times(broker, "stopped", gateway.open(process.data)["telemetry"], rows)
        _serves(broker, "stopped", rows)
        _serves(broker, "trimmed", rows[bases[1] :])
    with broker:
        assert clients.read_all(broker.address, "stopped")[: len(rows)] == rows
        assert clients.bounds(broker.address, "trimmed") == (bases[1], len(rows) + 2)
    for name in OUR_FILES:
        assert (broker.partition("stopped") / name).read_bytes() == (partition / name).read_bytes()


def test_a_killed_gateways_segments_alone_are_enough_for_a_broker(tmp_path: Path, broker: KraftBroker) -> None:
    """Given only .log files, the last with zeros at its end, it cuts these and makes the same indexes as we do."""
    with GatewayProcess(tmp_path / "gateway", extra_toml=SETTINGS) as process:
        process.start()
        with Traffic().to(process.port) as publishers:
            publishers.wait(MESSAGES, large=10)
            publishers.large.finish()
            # So that the active segment is none that one large value fills to the last byte.
            publishers.wait(publishers.acknowledged + 2_000)
            process.kill()
        killed = shutil.copytree(process.data, tmp_path / "killed")
        process.start()
        assert process.end() == 0
    durable, recovered = _rows(killed), _rows(process.data)
    assert len(durable) >= MESSAGES
    assert recovered[: len(durable)] == durable
    segments = sorted((killed / "telemetry-0").glob("*.log"))
    assert segments[-1].read_bytes().endswith(bytes(61)), "there are no zeros at the end"
    broker.replace_files("killed", segments)
    broker.forget_clean_stop()
    with broker:
        _finds_times(broker, "killed", gateway.open(process.data)["telemetry"], recovered)
        _serves(broker, "killed", recovered)
    # The active segment's has grown by what was produced.
    for sealed in segments[:-1]:
        for suffix in ("log", "index", "timeindex"):
            name = f"{sealed.stem}.{suffix}"
            theirs = (broker.partition("killed") / name).read_bytes()
            assert theirs == (process.data / "telemetry-0" / name).read_bytes(), name
