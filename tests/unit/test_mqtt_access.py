"""Mosquitto's ACL file, as far as it is about publishing."""

from __future__ import annotations

import pytest
from gateway_adapters.mqtt.access import Access
from gateway_native.mqtt import filter_match

from gateway.errors import ConfigError

TEXT = """
# everybody who gives no name
topic write public/#
topic read secret/#

user press
topic plant/press/#
topic deny plant/press/setup
topic read plant/other/#
topic write a topic with spaces

user lamp
topic write lamp

pattern write by-client/%c/+
pattern write by-user/%u/#
pattern deny by-user/%u/private
"""


@pytest.fixture
def access(tmp_path):
    path = tmp_path / "acl"
    path.write_text(TEXT, encoding="utf-8")
    return Access.load(path)


def may(access: Access, user: str | None, client: str, topic: str) -> bool:
    for rule in access.rules(user, client):
        if filter_match(rule.topic_filter.encode(), topic.encode()):
            return rule.allowed
    return False


@pytest.mark.parametrize(
    ("user", "topic", "allowed"),
    [
        (None, "public/a", True),
        (None, "secret/a", False),
        (None, "plant/press/a", False),
        (None, "by-client/c1/a", True),
        (None, "by-user//a", False),
        ("press", "plant/press/a", True),
        ("press", "plant/press/setup", False),
        ("press", "plant/other/a", False),
        ("press", "a topic with spaces", True),
        ("press", "public/a", False),
        ("press", "lamp", False),
        ("press", "by-client/c1/a", True),
        ("press", "by-client/c2/a", False),
        ("press", "by-user/press/a/b", True),
        ("press", "by-user/press/private", False),
        ("press", "by-user/lamp/a", False),
        ("lamp", "lamp", True),
        ("unknown", "lamp", False),
        ("unknown", "by-user/unknown/a", True),
    ],
)
def test_rules(access, user, topic, allowed):
    """Own rules, patterns, denials; what nothing allows is forbidden."""
    assert may(access, user, "c1", topic) is allowed


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a+", "a#"])
def test_name_that_would_widen_a_pattern(access, name):
    """A client cannot call itself `+` to publish as everybody."""
    for user, client in ((name, "c1"), ("press", name), (name, name)):
        for topic in ("by-client/c1/a", "by-client/x/a", "by-user/press/a", f"by-user/{name}/a", f"by-client/{name}/a"):
            assert not may(access, user, client, topic)
    assert may(access, "press", name, "plant/press/a"), "its own rules hold whatever the client is called"


def test_client_called_like_a_placeholder(access):
    """What was put in is not looked at again."""
    assert not may(access, "press", "%u", "by-client/press/a")
    assert may(access, "press", "%u", "by-client/%u/a")


@pytest.mark.parametrize(
    "line", ["topics a", "user", "topic", "pattern", "topic write a/#/b", "topic write a+", "allow everything"]
)
def test_bad_line(tmp_path, line):
    """A sentence with file and line: a rule that is passed over would be a hole."""
    path = tmp_path / "acl"
    path.write_text(f"# first\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"acl:2: "):
        Access.load(path)
