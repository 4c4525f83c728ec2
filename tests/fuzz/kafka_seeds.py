"""Inputs for the Kafka endpoint's fuzzer to begin with: a sound request of every API and version, batches, logins."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gateway_native import batch

from gateway.kafka import wire
from tests.fuzz.target_kafka import APIS, BATCH, COMPRESSED, LOGIN, PASSWORD, REQUEST, STREAM, TOPIC
from tests.support.compressed import CODECS, compressed
from tests.support.kafka_wire import request

_SECOND = timedelta(seconds=1)
_MEMBER = {"group_id": "group", "generation_id": 1, "member_id": "member", "group_instance_id": None}
_SHARE = {"member_id": "member", "assignment": b"share"}
_PROTOCOL = {"name": "range", "metadata": b"\0\0\0\0\0\1\0\x06orders"}
_COMMIT = {"partition_index": 0, "committed_offset": 3, "committed_leader_epoch": -1, "committed_metadata": "m"}
_BATCH = batch.encode([(1_000, b"key", b"value", [("name", b"text")])] * 3)

# Fields of all versions; those that a version does not have are left out of it.
VALUES: dict[int, dict[str, Any]] = {
    wire.PRODUCE: {
        "transactional_id": None, "acks": -1, "timeout": _SECOND,
        "topic_data": [{"name": TOPIC, "partition_data": [{"index": 0, "records": _BATCH}]}],
    },
    wire.FETCH: {
        "replica_id": -1, "max_wait": timedelta(0), "min_bytes": 1, "max_bytes": 2**20, "isolation_level": 0,
        "forgotten_topics_data": [],
        "topics": [
            {"topic": TOPIC, "partitions": [{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 2**16}]}
        ],
    },
    wire.LIST_OFFSETS: {
        "replica_id": -1, "isolation_level": 0,
        "topics": [{"name": TOPIC, "partitions": [{"partition_index": 0, "timestamp": -1}]}],
    },
    wire.METADATA: {
        "topics": [{"name": TOPIC, "topic_id": None}], "allow_auto_topic_creation": False,
        "include_topic_authorized_operations": False, "include_cluster_authorized_operations": False,
    },
    wire.OFFSET_COMMIT: {
        **_MEMBER, "generation_id_or_member_epoch": -1, "retention_time": timedelta(0),
        "topics": [{"name": TOPIC, "partitions": [_COMMIT]}],
    },
    wire.OFFSET_FETCH: {"group_id": "group", "topics": [{"name": TOPIC, "partition_indexes": [0]}]},
    wire.FIND_COORDINATOR: {"key": "group", "key_type": 0, "coordinator_keys": ["group"]},
    wire.JOIN_GROUP: {
        **_MEMBER, "session_timeout": timedelta(seconds=5), "rebalance_timeout": _SECOND, "member_id": "",
        "protocol_type": "consumer", "protocols": [_PROTOCOL],
    },
    wire.HEARTBEAT: _MEMBER,
    wire.LEAVE_GROUP: {**_MEMBER, "members": [{"member_id": "member", "group_instance_id": None}]},
    wire.SYNC_GROUP: {**_MEMBER, "protocol_type": "consumer", "protocol_name": "range", "assignments": [_SHARE]},
    wire.SASL_HANDSHAKE: {"mechanism": "PLAIN"},
    wire.API_VERSIONS: {"client_software_name": "fuzz", "client_software_version": "1"},
    wire.INIT_PRODUCER_ID: {"transactional_id": None, "transaction_timeout": _SECOND, "producer_id": -1,
                            "producer_epoch": -1},
    wire.SASL_AUTHENTICATE: {"auth_bytes": b"\0etl\0password"},
}  # fmt: skip


def inputs() -> dict[str, bytes]:
    """By a name that says what it is."""
    found: dict[str, bytes] = {}
    for number, (api, version) in enumerate(APIS):
        sent = request(api, version, VALUES[api])
        start = 18 + wire.is_flexible(api, version)  # behind length, header and the name "test"
        found[f"request-{api}-{version}"] = bytes([REQUEST, number]) + sent[start:]
    sent = b"".join(request(api, wire.VERSIONS[api][1], VALUES[api]) for api in (18, 3, 2, 1, 22, 0, 1))
    found["stream"] = bytes([STREAM, 40]) + sent
    found["batch"] = bytes([BATCH, 0]) + _BATCH
    for name in CODECS:
        found[f"batch-{name}"] = bytes([BATCH, 0]) + compressed(_BATCH, name)
        found[f"records-{name}"] = bytes([COMPRESSED, CODECS[name][0]]) + compressed(_BATCH, name)[batch.HEADER_BYTES :]
    found["plain"] = bytes([LOGIN, 0]) + f"\0etl\0{PASSWORD}".encode()
    found["scram"] = bytes([LOGIN, 1]) + b"n,,n=etl,r=abc\xffc=biws,r=%r,p=" + b"A" * 43 + b"="
    return found
