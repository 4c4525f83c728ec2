"""What a subscriber remembers of its session at the broker: asked for is what is missing, and never too little."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from gateway_adapters.mqtt.subscriptions import BROKER_SAVES_S, Difference, Subscriptions

WANTED = {"plant/#": 1, "office/#": 0}
NOTHING = Difference({}, [])


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def remembered(tmp_path: Path, clock: Clock, broker: str = "broker:1883", client_id: str = "me") -> Subscriptions:
    """As after a start of the gateway."""
    path = tmp_path / "mqtt-subscribers" / "it.json"
    return Subscriptions(path, broker, client_id, logging.getLogger("test"), clock_s=clock)


def subscribe(found: Subscriptions, wanted: dict[str, int], *, present: bool, version_5: bool = False) -> Difference:
    """One connection that goes well."""
    known = found.begin()
    asked = found.difference(wanted, present=present, known=known, repeatable=version_5)
    found.confirm(wanted, same_session=present and known)
    return asked


def test_a_session_that_is_there_is_asked_for_nothing(tmp_path, clock):
    """Also after a restart of the gateway. A new session is asked for everything."""
    assert subscribe(remembered(tmp_path, clock), WANTED, present=False) == Difference(WANTED, [])
    assert subscribe(remembered(tmp_path, clock), WANTED, present=True) == NOTHING
    assert subscribe(remembered(tmp_path, clock), WANTED, present=False) == Difference(WANTED, [])


def test_changed_routes_are_a_difference(tmp_path, clock):
    """New filters and those of another QoS are asked for, old ones are given back."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    changed = {"plant/#": 0, "yard/#": 1}
    assert subscribe(remembered(tmp_path, clock), changed, present=True) == Difference(changed, ["office/#"])
    assert subscribe(remembered(tmp_path, clock), changed, present=True) == NOTHING


def test_end_between_connect_and_confirmation_subscribes_again(tmp_path, clock):
    """The broker may have begun a session of which nobody heard; what it has is then not known, whatever it says."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    found = remembered(tmp_path, clock)
    assert found.begin()
    for again in (found, remembered(tmp_path, clock)):  # the next connection, or the next start
        known = again.begin()
        assert not known
        asked = again.difference({"plant/#": 1}, present=True, known=known, repeatable=False)
        assert asked == Difference({"plant/#": 1}, ["office/#"])


def test_refused_connection_changes_nothing(tmp_path, clock):
    """A CONNACK that refuses has not touched the session."""
    found = remembered(tmp_path, clock)
    subscribe(found, WANTED, present=False)
    found.begin()
    found.restore()
    assert subscribe(found, WANTED, present=True) == NOTHING


def test_another_broker_or_client_id_knows_nothing(tmp_path, clock):
    """What one session has says nothing of another's."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    other = remembered(tmp_path, clock, broker="other:1883")
    assert subscribe(other, WANTED, present=True) == Difference(WANTED, [])
    assert subscribe(remembered(tmp_path, clock, "other:1883", "you"), WANTED, present=True) == Difference(WANTED, [])


def test_broker_that_crashed_after_a_subscription_gets_it_again(tmp_path, clock):
    """In MQTT 5, where asking again repeats nothing, until brokers have surely saved it; in 3.1.1 never."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    clock.now_s += BROKER_SAVES_S - 10
    assert subscribe(remembered(tmp_path, clock), WANTED, present=True, version_5=False) == NOTHING
    assert subscribe(remembered(tmp_path, clock), WANTED, present=True, version_5=True) == Difference(WANTED, [])
    clock.now_s += 20
    assert subscribe(remembered(tmp_path, clock), WANTED, present=True, version_5=True) == NOTHING


@pytest.mark.parametrize("content", ["", "{", "[]", '{"broker": "broker:1883"}', "\x00" * 100])
def test_damaged_file_subscribes_again(tmp_path, clock, caplog, content):
    """It is named, and everything is asked for."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    (tmp_path / "mqtt-subscribers" / "it.json").write_text(content)
    found = remembered(tmp_path, clock)
    assert "not known" in caplog.text
    assert subscribe(found, WANTED, present=True) == Difference(WANTED, [])


def test_disk_that_takes_no_file_costs_only_the_memory_of_it(tmp_path, clock, caplog):
    """What cannot be written is said, and the next start subscribes to everything."""
    (tmp_path / "mqtt-subscribers").write_text("a file where a directory is wanted")
    found = remembered(tmp_path, clock)
    caplog.clear()
    subscribe(found, WANTED, present=False)
    assert "cannot remember" in caplog.text
    assert subscribe(found, WANTED, present=True) == NOTHING
    assert subscribe(remembered(tmp_path, clock), WANTED, present=True) == Difference(WANTED, [])


def test_file_says_no_secret(tmp_path, clock):
    """Broker, client id and filters only."""
    subscribe(remembered(tmp_path, clock), WANTED, present=False)
    content = json.loads((tmp_path / "mqtt-subscribers" / "it.json").read_text())
    assert set(content) == {"broker", "client_id", "confirmed", "filters"}
