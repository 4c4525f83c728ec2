"""Who may connect, as whom: passwords, certificates over a real handshake in memory, and those who give no name."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from gateway_adapters.mqtt.door import Door, LoginRefused
from gateway_adapters.mqtt.protocol import Connect
from gateway_adapters.mqtt.tls import identity, server_context

from gateway.config import ListenerConfig, from_dict
from gateway.errors import ConfigError
from tests.support.certificates import Authority
from tests.unit.test_mqtt_users import new_hash


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "tls")


@pytest.fixture
def configured(tmp_path, authority):
    """A listener's configuration; `tls=True` gives it a certificate."""

    def configure(*, tls: bool = False, **settings: Any) -> ListenerConfig:
        if tls:
            certificate, key = authority.issue("server")
            settings |= {"tls_cert": str(certificate), "tls_key": str(key)}
        if "client_certificates" in settings:
            settings.setdefault("tls_client_ca", str(authority.file))
        wanted = {"bind": "127.0.0.1:0", "routes": [{"filter": "#", "stream": "t"}], **settings}
        return from_dict({"data": str(tmp_path / "data"), "mqtt": {"listeners": {"l": wanted}}}).mqtt.listeners["l"]

    return configure


@pytest.fixture
def users_file(tmp_path):
    path = tmp_path / "users"
    path.write_text(f"press:{new_hash(b'right')}\n", encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def client_context(authority: Authority, files: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if files is not None:
        context.load_cert_chain(*files)
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Both ends of a TLS connection in memory; gives the server's. Raises SSLError of either."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
    ]
    waiting = list(ends)
    for _ in range(20):
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return ends[0]


def hello(name: str | None = None, password: bytes | None = None) -> Connect:
    return Connect(5, "c", clean_start=True, keepalive_s=60, username=name, password=password)


def door_of(config: ListenerConfig) -> Door:
    return Door(config, lambda: 0.0)


async def test_anonymous_clients(configured, users_file):
    """On loopback without users everybody may come, also under a name; with users only who is one."""
    door = door_of(configured())
    assert (await door.check(hello(), "c", "127.0.0.1", None)).user is None
    assert (await door.check(hello("press", b"x"), "c", "127.0.0.1", None)).user is None
    door = door_of(configured(users_file=users_file))
    with pytest.raises(LoginRefused) as caught:
        await door.check(hello(), "c", "127.0.0.1", None)
    assert caught.value.reason == 0x87
    door.close()
    door = door_of(configured(users_file=users_file, allow_anonymous=True))
    assert (await door.check(hello(), "c", "127.0.0.1", None)).user is None
    door.close()


async def test_passwords(configured, users_file):
    """The right one proves the name; a wrong one is never anonymous, hears 0x86, and waits longer each time."""
    door = door_of(configured(users_file=users_file, allow_anonymous=True))
    assert (await door.check(hello("press", b"right"), "c", "10.0.0.1", None)).user == "press"
    delays = []
    for name, password in (("press", b"wrong"), ("press", None), ("nobody", b"right")):
        with pytest.raises(LoginRefused) as caught:
            await door.check(hello(name, password), "c", "10.0.0.1", None)
        assert caught.value.reason == 0x86
        assert "wrong user name or password" in caught.value.cause
        delays.append(caught.value.delay_s)
    assert delays == [0.25, 0.5, 1.0]
    door.close()


async def test_rules_of_a_user(configured, users_file, tmp_path):
    """What a client may publish follows from who it has proved to be, not from what it calls itself."""
    acl = tmp_path / "acl"
    acl.write_text("topic public\nuser press\ntopic plant/#\n", encoding="utf-8")
    door = door_of(configured(access_file=str(acl), users_file=users_file, allow_anonymous=True))
    assert (await door.check(hello("press", b"right"), "c", "", None)).rules == (("plant/#", True),)
    assert (await door.check(hello(), "c", "", None)).rules == (("public", True),)
    door.close()
    door = door_of(configured(access_file=str(acl)))
    assert (await door.check(hello("press", b"any"), "c", "", None)).rules == (("public", True),)


async def test_reload(configured, users_file, tmp_path):
    """Renewed files count at once; with a broken one among them nothing changes."""
    acl = tmp_path / "acl"
    acl.write_text("user press\ntopic plant/#\n", encoding="utf-8")
    door = door_of(configured(access_file=str(acl), users_file=users_file))
    acl.write_text("user press\ntopic plant/a\n", encoding="utf-8")
    (tmp_path / "users").write_text("press:secret\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        door.reload()
    assert (await door.check(hello("press", b"right"), "c", "", None)).rules == (("plant/#", True),)
    (tmp_path / "users").write_text(f"press:{new_hash(b'new')}\n", encoding="utf-8")
    door.reload()
    assert (await door.check(hello("press", b"new"), "c", "", None)).rules == (("plant/a", True),)
    door.close()


async def test_certificate_names_the_user(configured, authority):
    """With `use_identity_as_username` the common name is the user, whatever CONNECT says."""
    config = configured(tls=True, client_certificates="require", use_identity_as_username=True)
    door = door_of(config)
    connection = shake_hands(door.tls, client_context(authority, authority.issue("press-1")))
    assert identity(connection) == "press-1"
    assert (await door.check(hello("other", b"x"), "c", "10.0.0.1", connection)).user == "press-1"


def test_client_without_certificate(configured, authority):
    """Refused in the handshake where one is required, let through where it is optional."""
    optional = server_context(configured(tls=True, client_certificates="optional"))
    assert identity(shake_hands(optional, client_context(authority))) is None
    required = server_context(configured(tls=True, client_certificates="require"))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(required, client_context(authority))


@pytest.mark.parametrize("fault", ["expired", "another authority", "revoked"])
def test_bad_client_certificate(configured, authority, tmp_path, fault):
    """Certificates that are over, revoked, or of somebody else's authority end the handshake."""
    issuer = Authority(tmp_path / "other", "other") if fault == "another authority" else authority
    files = issuer.issue("press-1", expired=fault == "expired")
    more = {"tls_client_crl": str(authority.revoke(authority.issued))} if fault == "revoked" else {}
    server = server_context(configured(tls=True, client_certificates="require", **more))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server, client_context(authority, files))
    if fault == "revoked":
        shake_hands(server, client_context(authority, authority.issue("press-2")))


def test_old_tls(configured, authority):
    """TLS 1.1 is refused."""
    client = client_context(authority)
    client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(server_context(configured(tls=True)), client)


def test_bad_files(configured, authority, tmp_path):
    """Each fault is a sentence with the file's name: not PEM, the wrong key, an encrypted key, no authority in it."""
    certificate, key = authority.issue("one")
    _, other = authority.issue("two")
    text = tmp_path / "text"
    text.write_text("not PEM", encoding="utf-8")
    for files, cause in (
        ((text, key), "text and .*one.key: cannot be used"),
        ((certificate, other), "two.key: is not"),
    ):
        with pytest.raises(ConfigError, match=cause):
            server_context(configured(tls_cert=str(files[0]), tls_key=str(files[1])))
    with pytest.raises(ConfigError, match="text: holds no certificate in PEM"):
        server_context(configured(tls=True, client_certificates="require", tls_client_ca=str(text)))
    with pytest.raises(ConfigError, match=r"authority\.pem: holds no revocation list"):
        server_context(configured(tls=True, client_certificates="require", tls_client_crl=str(authority.file)))


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"bind": "0.0.0.0:1883"}, "nobody would have to prove who they are"),
        ({"bind": "[::]:1883"}, "nobody would have to prove who they are"),
        ({"bind": "plant.local:1883"}, "nobody would have to prove who they are"),
        ({"tls": True, "bind": "0.0.0.0:1883"}, "nobody would have to prove who they are"),
        ({"tls": True, "bind": "0.0.0.0:1883", "client_certificates": "optional"}, "nobody would have to prove"),
        ({"bind": "127.0.0.1:1883", "allow_anonymous": False}, "nobody could connect"),
        ({"client_certificates": "require"}, "only over TLS"),
        ({"users_file": "/nowhere"}, "there is no file '/nowhere'"),
        ({"bind": "unix:relative.sock"}, "has an absolute path"),
        ({"bind": f"unix:/{'x' * 107}"}, "of at most 107 bytes"),
        ({"use_identity_as_username": True}, "client_certificates"),
        ({"socket_mode": "rw"}, "in octal"),
    ],
)
def test_configuration_that_cannot_be_meant(configured, settings, cause):
    """Open to a network by accident, closed to everybody, or keys without effect: refused with a sentence."""
    with pytest.raises(ConfigError, match=cause):
        configured(**settings)


def test_configurations_that_are_meant(configured, users_file):
    """Networks with users, with certificates, or open on purpose; loopback and Unix sockets without any."""
    configured(bind="0.0.0.0:1883", users_file=users_file)
    configured(bind="0.0.0.0:1883", tls=True, client_certificates="require")
    assert configured(bind="0.0.0.0:1883", allow_anonymous=True).allow_anonymous
    assert configured(bind="unix:/run/gateway.sock").allow_anonymous
    assert not configured(users_file=users_file).allow_anonymous
