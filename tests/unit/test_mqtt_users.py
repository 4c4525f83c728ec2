"""Mosquitto's password file: what `mosquitto_passwd` writes is understood, and nothing of it is ever shown."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
from gateway_adapters.mqtt import users as module
from gateway_adapters.mqtt.users import TooBusy, Users

from gateway.errors import ConfigError

SALT = b"twelve bytes"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def old_hash(password: bytes) -> str:
    return f"$6${encoded(SALT)}${encoded(hashlib.sha512(password + SALT).digest())}"


def new_hash(password: bytes, iterations: int = 101) -> str:
    digest = hashlib.pbkdf2_hmac("sha512", password, SALT, iterations)
    return f"$7${iterations}${encoded(SALT)}${encoded(digest)}"


@pytest.fixture
def load(tmp_path):
    made: list[Users] = []

    def from_text(text: str) -> Users:
        path = tmp_path / "users"
        path.write_text(text, encoding="utf-8")
        made.append(Users.load(path))
        return made[-1]

    yield from_text
    for users in made:
        users.close()


async def test_both_kinds_of_hashes(load):
    """The right password is taken; a wrong one, an empty one, another user's and an unknown user's are not."""
    users = load(f"# devices\n\nold:{old_hash(b'one')}\nnew:{new_hash(b'two')}\n")
    assert len(users) == 2
    assert await users.verify("old", b"one")
    assert await users.verify("new", b"two")
    for name, password in (("old", b"two"), ("new", b"one"), ("new", b""), ("nobody", b"two"), ("", b""), ("old", b"")):
        assert not await users.verify(name, password), (name, password)


async def test_reload_with_a_broken_file(load):
    """A file that cannot be used leaves the users as they were; a good one replaces them."""
    users = load(f"a:{new_hash(b'one')}\n")
    users.path.write_text("a:secret\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        users.reload()
    assert await users.verify("a", b"one")
    users.path.write_text(f"b:{new_hash(b'two')}\n", encoding="utf-8")
    users.reload()
    assert not await users.verify("a", b"one")
    assert await users.verify("b", b"two")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("hunter2", "is not 'name:hash'"),
        (":hunter2", "is not 'name:hash'"),
        ("a:hunter2", "'mosquitto_passwd -U FILE' turns passwords into hashes"),
        ("a:$7$x$aHVudGVyMg==$aHVudGVyMg==", "number of iterations"),
        ("a:$7$99999999$aHVudGVyMg==$aHVudGVyMg==", "number of iterations"),
        ("a:$7$101$aHVudGVyMg==$aHVudGVyMg==", "not as long as a SHA-512 hash"),
        ("a:$6$hunter2$hunter2", "not Base64"),
        ("a:$argon2id$hunter2", "Argon2"),
        ("a:$5$hunter2$hunter2", "of no known kind"),
    ],
)
def test_bad_line(load, tmp_path, line, cause):
    """A sentence with file and line, and without what stands there, which may be a password."""
    with pytest.raises(ConfigError, match=r"users:3: ") as caught:
        load(f"# one\n\n{line}\n")
    assert cause in str(caught.value)
    sentence = str(caught.value).replace(str(tmp_path), "")
    assert "hunter2" not in sentence
    assert "aHVud" not in sentence


def test_user_named_twice(load):
    """Which of two hashes is meant cannot be known."""
    with pytest.raises(ConfigError, match=r"users:2: .*earlier line"):
        load(f"a:{new_hash(b'one')}\na:{new_hash(b'two')}\n")


def test_missing_file(tmp_path):
    """The sentence names the file."""
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file"):
        Users.load(tmp_path / "nowhere")


async def test_too_many_attempts_at_once(load, monkeypatch):
    """A flood of logins is refused beyond a bound, and leaves nothing behind."""
    monkeypatch.setattr(module, "WAITING_MAX", 4)
    users = load(f"a:{new_hash(b'one', 100_000)}\n")
    found = await asyncio.gather(*(users.verify("a", b"one") for _ in range(10)), return_exceptions=True)
    assert found.count(True) == 4
    assert sum(isinstance(one, TooBusy) for one in found) == 6
    assert await users.verify("a", b"one")


def test_repr_shows_no_hash(load):
    """A hash in a traceback could be cracked at leisure."""
    users = load(f"a:{new_hash(b'one')}\n")
    assert repr(users._hashes["a"]) == "PasswordHash(iterations=101)"
