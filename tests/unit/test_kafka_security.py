"""Who may connect to the Kafka endpoint: SASL in every version, TLS, and what strangers are told."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaException

from gateway.cli import cli
from gateway.errors import ConfigError
from gateway.kafka import wire
from gateway.serve.kafka import sasl
from gateway.serve.kafka.users import Credentials, Users
from tests.support.certificates import Authority
from tests.support.kafka_endpoint import STREAM, running_endpoint
from tests.support.kafka_wire import WireClient

PASSWORD = "correct horse, battery = staple"
MECHANISMS = (wire.PLAIN, wire.SCRAM_SHA_256)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file with one user, whose name needs escaping in SCRAM."""
    file = tmp_path / "users"
    line = Credentials.make(PASSWORD, iterations=4_096).line("e=t,l")
    file.write_text(f"# those who may read\n\n{line}\n")
    file.chmod(0o600)
    return file


def _aiokafka(port: int, mechanism: str, password: str, **more: Any) -> dict[str, Any]:
    return {
        "bootstrap_servers": f"127.0.0.1:{port}",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "e=t,l",
        "sasl_plain_password": password,
        **more,
    }


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_user_reads(tmp_path: Path, users: Path, mechanism: str) -> None:
    """With the right password, by aiokafka and by librdkafka; commas and equals signs in the name are no obstacle."""
    async with running_endpoint(tmp_path / "data", users_file=str(users)) as running:
        await running.record([b"secret"])
        kafka = _aiokafka(running.port, mechanism, PASSWORD)
        consumer = AIOKafkaConsumer(STREAM, auto_offset_reset="earliest", **kafka)
        await consumer.start()
        assert (await consumer.getone()).value == b"secret"
        await consumer.stop()
        topics = await asyncio.to_thread(_topics_by_librdkafka, running.port, mechanism, PASSWORD)
        assert STREAM in topics


def _topics_by_librdkafka(port: int, mechanism: str, password: str) -> set[str]:
    consumer = Consumer(
        {
            "bootstrap.servers": f"127.0.0.1:{port}", "group.id": "g", "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism, "sasl.username": "e=t,l", "sasl.password": password,
        }
    )  # fmt: skip
    try:
        return set(consumer.list_topics(timeout=3).topics)
    finally:
        consumer.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password_is_refused(tmp_path: Path, users: Path, mechanism: str) -> None:
    """It is logged with the name, without the password, and the connection ends."""
    async with running_endpoint(tmp_path / "data", users_file=str(users)) as running:
        producer = AIOKafkaProducer(**_aiokafka(running.port, mechanism, "wrong-and-secret"))
        with pytest.raises(KafkaError):
            await producer.start()
        await producer.stop()
        assert running.endpoint.statistics()["logins_refused"] >= 1
        assert running.events.named("login refused")[0]["user"] == "e=t,l"
        assert "wrong-and-secret" not in str(running.events.seen)


@pytest.mark.parametrize("version", range(wire.VERSIONS[wire.SASL_AUTHENTICATE][1] + 1))
async def test_every_version_of_sasl(tmp_path: Path, users: Path, version: int) -> None:
    """Handshake and authentication in all versions; before it, only what strangers may ask."""
    async with running_endpoint(tmp_path / "data", users_file=str(users)) as running:

        def use() -> None:
            with WireClient(running.port) as client:
                assert wire.SASL_HANDSHAKE in {one.api_key for one in client.call(wire.API_VERSIONS, 0).api_keys}
                assert client.call(wire.SASL_HANDSHAKE, 1, mechanism="GSSAPI").error_code == 33
                handshake = client.call(wire.SASL_HANDSHAKE, 1, mechanism=wire.PLAIN)
                assert (handshake.error_code, set(handshake.mechanisms)) == (0, set(MECHANISMS))
                token = f"\0e=t,l\0{PASSWORD}".encode()
                assert client.call(wire.SASL_AUTHENTICATE, version, auth_bytes=token).error_code == 0
                assert client.call(wire.METADATA, 1, topics=None).topics is not None
                assert client.call(wire.SASL_AUTHENTICATE, version, auth_bytes=token).error_code == 34
            with WireClient(running.port) as stranger:
                with pytest.raises(ConnectionResetError):
                    stranger.call(wire.METADATA, 1, topics=None)

        await asyncio.to_thread(use)


async def test_who_does_not_say_who_it_is_is_cut_off(tmp_path: Path, users: Path) -> None:
    """Within connect_timeout, however many requests that strangers may make it has made."""
    async with running_endpoint(tmp_path / "data", users_file=str(users), connect_timeout="1s") as running:

        def use() -> None:
            with WireClient(running.port) as client:
                client.call(wire.API_VERSIONS, 0)
                assert client.is_closed

        await asyncio.to_thread(use)


async def test_tls_and_scram_together(tmp_path: Path, users: Path) -> None:
    """Records larger than what is read at a time come through, and a client without TLS does not get in."""
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.issue("gateway")
    value = bytes(range(256)) * 4_096
    settings = {"users_file": str(users), "tls_cert": str(certificate), "tls_key": str(key)}
    async with running_endpoint(tmp_path / "data", **settings) as running:
        await running.record([value] * 3)
        context = ssl.create_default_context(cafile=authority.file)
        kafka = _aiokafka(running.port, wire.SCRAM_SHA_256, PASSWORD, security_protocol="SASL_SSL", ssl_context=context)
        consumer = AIOKafkaConsumer(STREAM, auto_offset_reset="earliest", max_partition_fetch_bytes=2**22, **kafka)
        await consumer.start()
        assert [(await consumer.getone()).value for _ in range(3)] == [value] * 3
        await consumer.stop()
        with pytest.raises(KafkaException):
            await asyncio.to_thread(_topics_by_librdkafka, running.port, wire.SCRAM_SHA_256, PASSWORD)


def _add_user(users: Path) -> None:
    users.write_text(f"{users.read_text()}{Credentials.make('other', iterations=4_096).line('second')}\n")


def _spoil(users: Path) -> None:
    users.write_text("second:not a hash\n")


async def test_renewed_files_hold_for_connections_to_come(tmp_path: Path, users: Path) -> None:
    """SIGHUP: who was added may connect; a file that is wrong leaves everything as it was."""
    async with running_endpoint(tmp_path / "data", users_file=str(users)) as running:
        _add_user(users)
        running.endpoint.refresh()
        _spoil(users)
        with pytest.raises(ConfigError, match=r"users:1: is not 'name:SCRAM-SHA-256"):
            running.endpoint.refresh()
        kafka = _aiokafka(running.port, wire.SCRAM_SHA_256, "other", sasl_plain_username="second")
        consumer = AIOKafkaConsumer(**kafka)
        await consumer.start()
        assert await consumer.topics() == set()
        await consumer.stop()


def test_the_command_makes_a_user(tmp_path: Path) -> None:
    """Its line checks the password it was given, and shows nothing of it."""
    done = CliRunner().invoke(cli, ["kafka-user", "etl"], input="pass word\n")
    assert done.exit_code == 0, done.output
    assert "pass" not in done.output
    (tmp_path / "users").write_text(done.output)
    credentials, known = Users(tmp_path / "users").find("etl")
    assert known
    assert credentials.matches("pass word")
    assert not credentials.matches("pass  word")


@pytest.mark.parametrize(
    ("first", "final"),
    [
        (b"\xff", b""), (b"n,,r=x,n=etl", b""), (b"p=tls-unique,,n=etl,r=x", b""), (b"n,a=other,n=etl,r=x", b""),
        (b"n,,n=etl,r=x", b"c=biws,r=other,p=AAAA"), (b"n,,n=etl,r=x", b"c=biws,p=AAAA"), (b"n,,n=etl,r=x", b""),
    ],
)  # fmt: skip
def test_malformed_scram_is_refused(tmp_path: Path, first: bytes, final: bytes) -> None:
    """Whatever comes: refused, nothing else."""
    (tmp_path / "users").write_text(Credentials.make("word", iterations=4_096).line("etl"))
    exchange = sasl.begin(wire.SCRAM_SHA_256, Users(tmp_path / "users"))

    def both() -> None:
        exchange.step(first)
        exchange.step(final)

    with pytest.raises(sasl.Refused):
        both()
    assert not exchange.done


@pytest.mark.parametrize("proof", ["ä" * 44, "A", "", "AAAA"])
def test_a_scram_proof_that_is_none(tmp_path: Path, proof: str) -> None:
    """In a message that belongs to the first one: refused, nothing else."""
    (tmp_path / "users").write_text(Credentials.make("word", iterations=4_096).line("etl"))
    exchange = sasl.begin(wire.SCRAM_SHA_256, Users(tmp_path / "users"))
    nonce = exchange.step(b"n,,n=etl,r=x").split(b",")[0]
    with pytest.raises(sasl.Refused, match=r"proof|wrong"):
        exchange.step(b"c=biws," + nonce + f",p={proof}".encode())
    assert not exchange.done


def test_an_unknown_name_looks_like_a_known_one(tmp_path: Path) -> None:
    """The same salt each time it is asked for, and as many iterations: so nobody learns which names exist."""
    (tmp_path / "users").write_text(Credentials.make("word", iterations=5_000).line("etl"))
    users = Users(tmp_path / "users")
    once, again = users.find("nobody"), users.find("nobody")
    assert once == again
    assert (once[0].iterations, len(once[0].salt), once[1]) == (5_000, 16, False)
