"""What a listener knows of its sessions after a restart: checkpoints, and what the log says since."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_adapters.mqtt.session_journal import key_of
from gateway_adapters.mqtt.session_state import (
    CheckpointError,
    SessionState,
    State,
    checkpoint_path,
    delivery_origin,
    load,
    restore,
    save,
)
from gateway_adapters.mqtt.sessions import _check_origin
from gateway_native import batch

from gateway.errors import ConfigError
from gateway.log.layout import prepare

LISTENER = "devices"
ORIGIN = delivery_origin(LISTENER)
CLIENT = "pump/7 ü%"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare(tmp_path, "site", "UTC")
    return tmp_path


def number(count: int, listener: str = LISTENER) -> int:
    """A delivery number of that listener."""
    return delivery_origin(listener) + count


def write(data: Path, stream: str, *records: tuple[bytes, bytes, list[tuple[str, bytes]]]) -> None:
    """Records at the end of a stream, as they would be after a gateway was killed."""
    directory = data / f"{stream}-0"
    directory.mkdir(exist_ok=True)
    log = directory / f"{0:020d}.log"
    before = log.read_bytes() if log.exists() else b""
    found = batch.scan(before, 0)[0]
    next_offset = found[-1][3] + 1 if found else 0
    rows = [(1_700_000_000_000, key, value, headers) for key, value, headers in records]
    log.write_bytes(before + batch.encode(rows, next_offset))


def publish(packet_id: int, delivery: int, client: str = CLIENT) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """A QoS 2 publish of a lasting session, as the parser records it."""
    escaped = key_of("x", client)[2:]
    headers = [("qos", b"2"), ("client", escaped), ("packet-id", b"%d" % packet_id), ("delivery", b"%d" % delivery)]
    return b"plant/a", b"x", headers


def note(*lines: str, client: str = CLIENT, listener: str = LISTENER) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """A record of the stream of sessions."""
    return key_of(listener, client), "\n".join(lines).encode(), []


def test_nothing_there(data: Path) -> None:
    """A new data directory has no session, and numbers begin behind the listener's own origin."""
    state = restore(data, LISTENER, load(data, LISTENER))
    assert state.sessions == {}
    assert state.delivery_next == ORIGIN + 1


def test_checkpoint_comes_back_whole(data: Path) -> None:
    """What was saved is loaded, and the time that passed meanwhile counts as absence."""
    kept = State(number(9), {CLIENT: SessionState(60, 5, {3: number(2), 65_535: number(8)})}, {"telemetry": 12})
    save(data, LISTENER, kept)
    save(data, LISTENER, kept)
    found = load(data, LISTENER, now_s=0)
    assert found == kept
    assert [path.name for path in checkpoint_path(data, LISTENER).parent.iterdir()] == ["devices.json"]


@pytest.mark.parametrize("position", [0, 10, 40, 90, -3])
def test_damaged_checkpoint(data: Path, position: int) -> None:
    """A flipped bit anywhere is found."""
    save(data, LISTENER, State(number(9), {CLIENT: SessionState(60, 5, {3: number(2)})}, {"telemetry": 12}))
    path = checkpoint_path(data, LISTENER)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load(data, LISTENER)


def test_checkpoint_of_another_listener(data: Path) -> None:
    """A file that was copied under another name is refused."""
    save(data, "other", State(1))
    checkpoint_path(data, "other").rename(checkpoint_path(data, LISTENER))
    with pytest.raises(CheckpointError, match="for listener 'other'"):
        load(data, LISTENER)


def test_unreleased_without_checkpoint(data: Path) -> None:
    """Everything is read: what was published last and not released since is unreleased, also under a reused number."""
    write(data, "__mqtt_sessions", note("end 0", "open 3600"))
    write(data, "telemetry", publish(1, number(1)), publish(2, number(2)), publish(3, number(3)), publish(2, number(4)))
    write(data, "__mqtt_sessions", note(f"release 1 {number(1)}"), note(f"release 2 {number(3)}"))
    state = restore(data, LISTENER, None)
    assert state.sessions == {CLIENT: SessionState(3_600, 0, {2: number(4), 3: number(3)})}
    assert state.delivery_next == number(5)


def test_reading_the_same_part_of_the_log_twice(data: Path) -> None:
    """A checkpoint that is newer than its offsets changes nothing: the numbers of deliveries decide."""
    write(data, "__mqtt_sessions", note("end 0", "open 3600"), note(f"release 1 {number(2)}"))
    write(data, "telemetry", publish(1, number(1)), publish(5, number(2)))
    first = restore(data, LISTENER, None)
    assert first.sessions[CLIENT].unreleased == {5: number(2)}
    first.offsets = dict.fromkeys(first.offsets, 0)
    save(data, LISTENER, first)
    again = restore(data, LISTENER, load(data, LISTENER))
    assert again.sessions[CLIENT].unreleased == {5: number(2)}
    assert again.delivery_next == number(3)


def test_only_what_follows_the_checkpoint_is_read(data: Path) -> None:
    """Offsets bound the work: a record below them is not looked at again."""
    write(data, "__mqtt_sessions", note("end 0", "open 3600"))
    write(data, "telemetry", publish(1, number(1)))
    checkpoint = State(number(2), {CLIENT: SessionState(3_600, 0, {})}, {"telemetry": 1, "__mqtt_sessions": 1})
    write(data, "telemetry", publish(7, number(2)))
    state = restore(data, LISTENER, checkpoint)
    assert state.sessions[CLIENT].unreleased == {7: number(2)}
    assert state.offsets == {"telemetry": 2, "__mqtt_sessions": 1}


def test_session_that_ended_and_began_again(data: Path) -> None:
    """A clean start forgets all that was received before it, and only that."""
    write(data, "__mqtt_sessions", note("open 3600"))
    write(data, "telemetry", publish(1, number(1)))
    write(data, "__mqtt_sessions", note(f"end {number(1)}", "open 60"))
    write(data, "telemetry", publish(2, number(2)))
    assert restore(data, LISTENER, None).sessions == {CLIENT: SessionState(60, 0, {2: number(2)})}


def test_session_that_ended(data: Path) -> None:
    """Ended sessions, and those that end with their connection, are gone; numbers go on behind theirs."""
    write(data, "__mqtt_sessions", note("open 3600"), note(f"end {number(40)}"), note("open 0", client="b"))
    state = restore(data, LISTENER, None)
    assert state.sessions == {}
    assert state.delivery_next == number(41)


def test_session_expired_while_the_gateway_was_away(data: Path) -> None:
    """Absence goes on while the gateway does not run."""
    save(data, LISTENER, State(number(1), {CLIENT: SessionState(60, 30, {}), "b": SessionState(600, 30, {})}))
    checkpoint = load(data, LISTENER, now_s=2**40)
    assert restore(data, LISTENER, checkpoint).sessions == {}


def test_two_listeners_with_clients_of_one_name_in_one_stream(data: Path) -> None:
    """Each takes its own deliveries only."""
    write(data, "__mqtt_sessions", note("open 60"), note("open 60", listener="other"))
    write(data, "telemetry", publish(1, number(1)), publish(2, number(50, "other")))
    assert restore(data, LISTENER, None).sessions[CLIENT].unreleased == {1: number(1)}
    assert restore(data, "other", None).sessions[CLIENT].unreleased == {2: number(50, "other")}


def test_two_listeners_whose_numbers_would_be_the_same() -> None:
    """Their names differ, their deliveries would not: a sentence says so."""
    origins: dict[int, str] = {}
    for count in range(100_000):
        other = origins.setdefault(delivery_origin(f"l-{count}"), f"l-{count}")
        if other != f"l-{count}":
            break
    _check_origin(other, [other, "unlike"])
    with pytest.raises(ConfigError, match=f"'{other}' and 'l-{count}' cannot be told apart"):
        _check_origin(other, [other, f"l-{count}"])


def test_stream_deleted_since_the_checkpoint(data: Path) -> None:
    """An offset beyond the end means that the stream began anew: it is read from its beginning."""
    write(data, "__mqtt_sessions", note("open 60"))
    write(data, "telemetry", publish(1, number(1)))
    checkpoint = State(number(1), {CLIENT: SessionState(60, 0, {})}, {"telemetry": 1_000})
    assert restore(data, LISTENER, checkpoint).sessions[CLIENT].unreleased == {1: number(1)}


def test_headers_of_other_programs(data: Path) -> None:
    """Records that only look like a delivery are passed over."""
    write(data, "__mqtt_sessions", note("open 60"))
    write(data, "telemetry", (b"k", b"v", [("delivery", b"tomorrow")]), (b"k", b"v", [("delivery", b"7")]))
    assert restore(data, LISTENER, None).sessions[CLIENT].unreleased == {}
