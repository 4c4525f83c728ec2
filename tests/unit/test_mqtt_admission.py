"""Limits by address and by second, with a clock that stands still."""

from __future__ import annotations

import pytest
from gateway_adapters.mqtt import admission as module
from gateway_adapters.mqtt.admission import Admission, Bucket, group_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_connections_of_one_address():
    """One address reaches its limit, others do not notice; who leaves makes room; nothing is remembered of the gone."""
    admission = Admission(per_address_max=2, rate=0, clock=Clock())
    assert [admission.enter("10.0.0.1") is None for _ in range(3)] == [True, True, False]
    assert admission.enter("10.0.0.2") is None
    admission.leave("10.0.0.1")
    assert admission.enter("10.0.0.1") is None
    for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
        admission.leave(host)
    assert admission._sockets == {}


def test_connect_rate():
    """A second's worth at once, then at the rate; a refused one takes no place."""
    clock = Clock()
    admission = Admission(per_address_max=0, rate=5, clock=clock)
    assert [admission.enter("10.0.0.1") is None for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 0.2
    assert [admission.enter("10.0.0.1") is None for _ in range(2)] == [True, False]
    assert admission._sockets == {"10.0.0.1": 6}


def test_unix_sockets_have_no_address():
    """Their clients do not count as one address; the rate holds for them, too."""
    admission = Admission(per_address_max=1, rate=2, clock=Clock())
    assert [admission.enter("") is None for _ in range(3)] == [True, True, False]
    admission.leave("")


def test_bucket_of_a_clock_that_steps_back():
    """Time that runs back neither fills nor empties it."""
    clock = Clock()
    bucket = Bucket(1, clock)
    assert bucket.take()
    clock.now -= 50
    assert not bucket.take()
    clock.now += 1
    assert bucket.take()


def test_failed_logins_wait_longer_and_longer():
    """Each failure from one address doubles the delay up to a bound; after ten quiet minutes it is forgotten."""
    clock = Clock()
    admission = Admission(per_address_max=0, rate=0, clock=clock)
    assert [admission.failed("10.0.0.1") for _ in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert admission.failed("10.0.0.2") == 0.25
    clock.now += module.FORGOTTEN_AFTER_S
    assert admission.failed("10.0.0.1") == 0.25


def test_failing_addresses_are_bounded(monkeypatch):
    """Whoever has a million addresses does not fill the memory; who failed longest ago is forgotten first."""
    monkeypatch.setattr(module, "FAILING_ADDRESSES_MAX", 3)
    admission = Admission(per_address_max=0, rate=0, clock=Clock())
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.4"):
        admission.failed(host)
    assert admission.failing == 3
    assert admission.failed("10.0.0.1") == 1.0
    assert admission.failed("10.0.0.2") == 0.25


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host, group):
    """A host has a whole IPv6 network of 64 bits to take addresses from."""
    assert group_of(host) == group
