"""`gateway.open("kafka://…")`: the same records as from the data directory itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway.kafka.client import KafkaError
from gateway.serve.kafka.users import Credentials
from tests.support.certificates import Authority
from tests.support.kafka_endpoint import STREAM, RunningEndpoint, running_endpoint

LARGE = bytes(range(256)) * 6_000  # more than one fetch asks for


async def _fill(running: RunningEndpoint) -> None:
    for number in range(6):
        await running.record([b"%d" % number, LARGE], key=b"plant/%d/x" % (number % 3))


async def test_it_reads_what_the_directory_holds(tmp_path: Path) -> None:
    """Everything, a range of offsets, of times, and by key filter; batches larger than one fetch among it."""
    data = tmp_path / "data"
    async with running_endpoint(data) as running:
        await _fill(running)

        def compare() -> None:
            here, there = gateway.open(data)[STREAM], gateway.open(f"kafka://127.0.0.1:{running.port}")[STREAM]
            whole = list(here.read().rows())
            times = [here.read().rows().__next__()[1], whole[5][1], whole[-1][1]]
            assert (there.log_start_offset, there.durable_offset, len(there)) == (0, 12, 12)
            selections: list[dict[str, Any]] = [
                {}, {"offsets": (3, 8)}, {"offsets": (None, 3)}, {"keys": ["plant/1/#"]}, {"offsets": (12, None)},
            ]  # fmt: skip
            for selection in selections:
                assert list(there.read(**selection).rows()) == list(here.read(**selection).rows()), selection
            start = next(iter(here.read(offsets=(5, 6)))).timestamp
            assert list(there.read(start=start).rows()) == list(here.read(start=start).rows())
            assert list(there.read(end=start).rows()) == list(here.read(end=start).rows())
            assert there.offset_at(start) == here.offset_at(start)
            described = there.describe()
            assert (described["records"], described["oldest"]) == (12, here.describe()["oldest"])
            assert times == sorted(times)

        await asyncio.to_thread(compare)


async def test_streams_are_found_and_missed(tmp_path: Path) -> None:
    """As in a directory; a connection that the gateway has closed meanwhile is made anew."""
    async with running_endpoint(tmp_path / "data", produce=["orders"], idle_timeout="1s") as running:
        await running.record([b"value"])

        def use() -> gateway.Log:
            log = gateway.open(f"kafka://127.0.0.1:{running.port}")
            assert log.streams() == ["orders", STREAM]
            with pytest.raises(gateway.StreamNotFound, match="telemetry"):
                _ = log["absent"]
            assert list(log["orders"].read()) == []
            return log

        log = await asyncio.to_thread(use)
        await asyncio.sleep(1.5)
        assert [record.value for record in await asyncio.to_thread(lambda: list(log[STREAM].read()))] == [b"value"]


async def test_over_tls_with_a_login(tmp_path: Path) -> None:
    """By SCRAM, in which the gateway proves itself too; a wrong password is refused, and shown nowhere."""
    certificate, key = Authority(tmp_path / "certificates").issue("gateway")
    users = tmp_path / "users"
    await asyncio.to_thread(users.write_text, Credentials.make("pass=word,", iterations=4_096).line("a=b,c"))
    settings = {"users_file": str(users), "tls_cert": str(certificate), "tls_key": str(key)}
    async with running_endpoint(tmp_path / "data", **settings) as running:
        await running.record([b"secret"])

        def read(password: str) -> list[bytes | None]:
            authority = tmp_path / "certificates" / "authority.pem"
            log = gateway.open(
                f"kafkas://localhost:{running.port}", username="a=b,c", password=password, tls_ca=authority
            )
            return [record.value for record in log[STREAM].read()]

        assert await asyncio.to_thread(read, "pass=word,") == [b"secret"]
        with pytest.raises(KafkaError, match="refuses the login") as raised:
            await asyncio.to_thread(read, "wrong-and-secret")
        assert "wrong-and-secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["kafka://", "kafka://user:secret@host", "kafka://host/topic", "kafka://host:x"])
def test_what_is_no_url_of_a_broker(url: str) -> None:
    """It is refused before anything is connected, and not shown."""
    with pytest.raises(gateway.UsageError, match="kafka://edge-7:9092") as raised:
        gateway.open(url)
    assert "secret" not in str(raised.value)


def test_nobody_there(tmp_path: Path) -> None:
    """One sentence that says where nobody was."""
    with pytest.raises(KafkaError, match=r"127.0.0.1:1 cannot be reached"):
        gateway.open("kafka://127.0.0.1:1").streams()


async def test_a_cursor_at_a_distance(tmp_path: Path) -> None:
    """It goes on where it was, and is not taken for one of another broker, or of a directory."""
    path = tmp_path / "report.cursor"
    async with running_endpoint(tmp_path / "data") as running:
        await _fill(running)

        def use() -> None:
            stream = gateway.open(f"kafka://127.0.0.1:{running.port}")[STREAM]
            cursor = stream.cursor(path)
            assert [record.offset for record, _ in zip(cursor.read(), range(3), strict=False)] == [0, 1, 2]
            cursor.commit()
            again = gateway.open(f"kafka://127.0.0.1:{running.port}")[STREAM].cursor(path)
            assert [record.offset for record in again.read()] == list(range(again.committed or 0, 12))
            assert again.lag == 0
            for other in (gateway.open(tmp_path / "data"), gateway.open(f"kafka://localhost:{running.port}")):
                with pytest.raises(gateway.FormatError, match="use another file"):
                    other[STREAM].cursor(path)

        await asyncio.to_thread(use)
