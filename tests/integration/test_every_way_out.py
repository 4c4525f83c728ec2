"""One recording, every way out: what was published is the same in Arrow, Parquet, MCAP, kcat and published again.

Each way is read by the library of its format (pyarrow, mcap, librdkafka's kcat, paho), and compared with what a
client of others had published, record by record.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mcap.reader import make_reader
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import gateway
from gateway.replay.exports.mcap import VALUE_PREFIX, VALUE_SUFFIX
from tests.integration.peers import mosquitto
from tests.support.gateway_process import environment
from tests.support.kafka_clients import read_all_with_kcat
from tests.support.kafka_gateway import Gateway
from tests.support.keeping_subscriber import KeepingSubscriber
from tests.support.native import wait_until

pytestmark = pytest.mark.integration

COUNT = 1_400
# At once on their way, more than have to be acknowledged: with fewer, paho lets QoS 0 overtake the others.
INFLIGHT = 1_000
LARGE = bytes(range(256)) * 8_192  # 2 MiB: several reads of a socket, a batch of its own
# How each is stored is said in docs/mqtt.md.
STORED = {"unit": ("°C", ("unit", b"%C2%B0C")), "retain": ("yes", ("user.retain", b"yes"))}


class Message(NamedTuple):
    """What was published, or what a way out says was."""

    timestamp_ms: int | None
    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] | None


def _payload(number: int) -> bytes:
    """Objects, other JSON, text, bytes that are none of these, nothing at all, and one that is large."""
    return (
        b'{"temperature": %d.5, "unit": "\xc2\xb0C"}' % number,
        b" %d.25 " % number,
        b"\x00\xff\xfe" * (number % 50),
        b'"text ' + b"\xc3\xa9" * (number % 9) + b'"',
        b"",
        b"[1, null]\r\n",
        LARGE if number == 6 else b"%d" % number,
    )[number % 7]


def _properties(number: int) -> dict[str, str]:
    """User properties, on every fifth message."""
    return {name: sent for name, (sent, _) in STORED.items()} if number % 5 == 0 else {}


def _published() -> list[tuple[int, Message]]:
    """QoS and message: what is published, and which headers its record then has."""
    messages = []
    for number in range(COUNT):
        qos = number % 3
        headers: list[tuple[str, bytes]] = [("qos", b"%d" % qos)] if qos else []
        if number % 5 == 0:
            headers += [("content-type", b"application/json"), *(stored for _, stored in STORED.values())]
        messages.append(
            (qos, Message(None, f"plant/{number % 11}/größe {number % 3}", _payload(number), tuple(headers)))
        )
    return messages


def _same(found: Sequence[object], expected: Sequence[object]) -> None:
    """Names the first that differs; the difference of two long lists of large payloads takes minutes to print."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == other, number


def _publish(port: int, messages: Sequence[tuple[int, Message]]) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="press", protocol=paho.MQTTv5)
    client.max_inflight_messages_set(INFLIGHT)
    client.connect("127.0.0.1", port)
    client.loop_start()
    waiting = []
    for number, (qos, message) in enumerate(messages):
        properties = Properties(PacketTypes.PUBLISH)
        if own := _properties(number):
            properties.ContentType = "application/json"
            properties.UserProperty = list(own.items())
        waiting.append(client.publish(message.key, message.value, qos, properties=properties))
    for each in waiting:
        each.wait_for_publish(30)
    client.disconnect()
    client.loop_stop()


class Site(NamedTuple):
    """A running gateway in which the messages are, what was published, and what its log says."""

    gateway: Gateway
    published: list[tuple[int, Message]]
    recorded: list[Message]
    between_ms: tuple[int, int]


@pytest.fixture(scope="module", name="site")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Gateway(tmp_path_factory.mktemp("site")) as process:
        process.start()
        published = _published()
        before = time.time_ns() // 1_000_000
        _publish(process.port, published)
        stream = gateway.open(process.data)["telemetry"]
        wait_until(lambda: len(stream) >= COUNT, "everything is durable")
        after = time.time_ns() // 1_000_000
        recorded = [
            Message(record.timestamp_ms, (record.key or b"").decode(), record.value or b"", record.headers)
            for record in stream.read()
        ]
        yield Site(process, published, recorded, (before, after))


def _run(site: Site, *arguments: object) -> dict[str, Any]:
    """The report of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *map(str, arguments), "--data", str(site.gateway.data), "--json"],
        capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_log_has_what_was_published(site: Site) -> None:
    """In order, with the headers that docs/mqtt.md names, at a time between the first publish and the last answer."""
    _same(
        [message._replace(timestamp_ms=None) for message in site.recorded],
        [message for _, message in site.published],
    )
    times = [message.timestamp_ms or 0 for message in site.recorded]
    assert times == sorted(times)
    assert site.between_ms[0] <= times[0] <= times[-1] <= site.between_ms[1]


def _of_table(table: pa.Table) -> list[Message]:
    assert table["offset"].to_pylist() == list(range(COUNT))
    rows = zip(
        table["timestamp"].cast(pa.int64()).to_pylist(), table["key"].to_pylist(), table["value"].to_pylist(),
        table["headers"].to_pylist(), strict=True,
    )  # fmt: skip
    return [
        Message(
            time_ns // 1_000_000, key if isinstance(key, str) else key.decode(), value,
            tuple((each["name"], each["value"]) if isinstance(each, dict) else each for each in headers or ()),
        )
        for time_ns, key, value, headers in rows
    ]  # fmt: skip


@pytest.mark.parametrize("view", [False, True])
def test_arrow(site: Site, view: bool) -> None:
    """Copied, and as views into the mapped log."""
    records = gateway.open(site.gateway.data)["telemetry"].read()
    _same(_of_table(records.to_arrow(headers=True, view=view)), site.recorded)


def test_parquet(site: Site, tmp_path: Path) -> None:
    """`gateway export` beside the gateway that runs."""
    report = _run(site, "export", "telemetry", tmp_path / "all.parquet")
    assert report["records"] == COUNT
    _same(_of_table(pq.ParquetFile(tmp_path / "all.parquet").read()), site.recorded)


def test_mcap(site: Site, tmp_path: Path) -> None:
    """By mcap's own reader; the format has no place for headers."""
    _run(site, "export", "telemetry", tmp_path / "all.mcap")
    found = []
    with (tmp_path / "all.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file, validate_crcs=True).iter_messages():
            value = message.data
            if schema is not None and schema.name == "gateway.Value":
                assert "value" in json.loads(value)
                value = value[len(VALUE_PREFIX) : -len(VALUE_SUFFIX)]
            found.append((message.sequence, message.log_time, channel.topic, value))
    expected = [
        (offset, (message.timestamp_ms or 0) * 1_000_000, message.key, message.value)
        for offset, message in enumerate(site.recorded)
    ]
    _same(sorted(found), expected)


def test_kcat(site: Site) -> None:
    """Over the network, from the Kafka endpoint."""
    rows = read_all_with_kcat(site.gateway.address, "telemetry")
    assert [row.offset for row in rows] == list(range(COUNT))
    found = [Message(row.timestamp_ms, (row.key or b"").decode(), row.value or b"", row.headers) for row in rows]
    _same(found, site.recorded)


def test_published_again(site: Site, tmp_path: Path) -> None:
    """`gateway replay` to a broker of others, and its subscriber: QoS and properties as at first, and the time."""
    with mosquitto(tmp_path / "broker", settings=["max_packet_size 16777216"]) as broker:
        subscriber = KeepingSubscriber(broker.port)
        try:
            report = _run(site, "replay", "telemetry", "--to", f"mqtt://127.0.0.1:{broker.port}", "--speed", "max")
            wait_until(lambda: len(subscriber.got) >= COUNT, "every message", 30.0)
        finally:
            subscriber.close()
    assert (report["messages"], report["skipped"], report["lost"]) == (COUNT, 0, 0)
    arrived = sorted(subscriber.got, key=lambda message: int(dict(_user(message))["original-offset"]))
    for number, (message, (qos, sent), recorded) in enumerate(zip(arrived, site.published, site.recorded, strict=True)):
        own = dict(_user(message))
        assert (message.topic, message.payload, message.qos) == (sent.key, sent.value, qos)
        assert own.pop("original-offset") == str(number)
        moment = datetime.fromisoformat(own.pop("original-time"))
        assert round(moment.timestamp() * 1000) == recorded.timestamp_ms
        assert own == _properties(number)
        assert getattr(message.properties, "ContentType", None) == ("application/json" if own else None)


def _user(message: paho.MQTTMessage) -> list[tuple[str, str]]:
    assert message.properties is not None
    found: list[tuple[str, str]] = message.properties.UserProperty
    return found
