"""Basic and digest authentication of a client, against the examples of the RFCs."""

from __future__ import annotations

import re

import pytest
from gateway_adapters.rtsp.authentication import Authenticator, parse_challenges
from gateway_adapters.rtsp.failures import Failure, RemoteFault

# RFC 7616, section 3.9.1: both challenges, one user, two answers.
REALM = 'realm="http-auth@example.org", qop="auth, auth-int"'
NONCE = 'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
SHA_256 = f"Digest {REALM}, algorithm=SHA-256, {NONCE}"
MD5 = f"Digest {REALM}, algorithm=MD5, {NONCE}"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def authenticator(username: str | None = "Mufasa", password: str = "Circle of Life") -> Authenticator:  # noqa: S107
    return Authenticator(username, password, new_nonce=lambda: CNONCE)


def parameters(value: str | None) -> dict[str, str]:
    assert value is not None
    assert value.startswith("Digest ")
    return {name: quoted or plain for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', value[7:])}


@pytest.mark.parametrize(
    ("challenge", "response"),
    [
        (SHA_256, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        (MD5, "8ca523f5e9506fed4657c9700eebdbec"),
    ],
)
def test_the_examples_of_rfc_7616(challenge: str, response: str) -> None:
    """The standard's user, nonce and path give the standard's response; what the camera gave comes back."""
    known = authenticator()
    known.challenged([challenge], answered=False)
    given = parameters(known.header("GET", "/dir/index.html"))
    assert given["response"] == response
    assert (given["nc"], given["qop"], given["cnonce"], given["username"]) == ("00000001", "auth", CNONCE, "Mufasa")
    assert given["opaque"] == "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
    assert parameters(known.header("GET", "/dir/index.html"))["nc"] == "00000002"


def test_the_example_of_rfc_2069() -> None:
    """Without qop, as nearly every camera asks: no counter, no nonce of the client's (erratum 749 has the response)."""
    known = authenticator("Mufasa", "CircleOfLife")
    nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093"
    known.challenged([f'Digest realm="testrealm@host.com", nonce="{nonce}"'], answered=False)
    given = parameters(known.header("GET", "/dir/index.html"))
    assert given["response"] == "1949323746fe6a43ef61f9606e7febea"
    assert given.keys() == {"username", "realm", "nonce", "uri", "response"}


def test_session_variants_hash_both_nonces_into_the_user() -> None:
    """MD5-sess (RFC 7616, section 3.4.2) computed by hand."""
    import hashlib

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    known = authenticator("u", "p")
    known.challenged(['Digest realm="r", nonce="n", algorithm=MD5-sess, qop="auth"'], answered=False)
    user = md5(f"{md5('u:r:p')}:n:{CNONCE}")
    expected = md5(f"{user}:n:00000001:{CNONCE}:auth:{md5('PLAY:rtsp://h/x')}")
    assert parameters(known.header("PLAY", "rtsp://h/x"))["response"] == expected


def test_the_strongest_of_several_offers_is_taken() -> None:
    """Digest hides the password and basic does not, in whatever order and in how many headers they come."""
    known = authenticator()
    known.challenged([f'Basic realm="x", {MD5}, {SHA_256}'], answered=False)
    assert known.scheme == "digest SHA-256"
    known = authenticator()
    known.challenged(['Basic realm="x"', MD5], answered=False)
    assert known.scheme == "digest MD5"
    known = authenticator()
    known.challenged(['Digest realm="x", nonce="n", algorithm=SHA-512-256', 'Basic realm="x"'], answered=False)
    assert (known.scheme, known.header("PLAY", "x")) == ("basic", "Basic TXVmYXNhOkNpcmNsZSBvZiBMaWZl")


def test_nothing_is_sent_unasked() -> None:
    """A camera that does not ask learns neither name nor password."""
    assert authenticator().header("DESCRIBE", "rtsp://h/x") is None


@pytest.mark.parametrize(
    ("values", "answered", "username", "cause"),
    [
        ([MD5], False, None, "wants a user name and password"),
        ([MD5], True, "u", "refuses the user name or password"),
        ([], False, "u", "does not say how"),
        (['Digest realm="r", nonce="n", qop="auth-int"'], False, "u", r"not supported \(md5\)"),
        (['Digest realm="r"'], False, "u", "not supported"),
        (["Bearer", 'Digest realm="r", nonce="n", algorithm=TLA'], False, "u", r"not supported \(bearer, tla\)"),
    ],
)
def test_what_cannot_be_answered_is_said(values: list[str], answered: bool, username: str | None, cause: str) -> None:
    """Each refusal is the state unauthorized with a cause of its own."""
    known = authenticator(username)
    if answered:
        known.challenged(values, answered=False)
    with pytest.raises(Failure, match=cause) as caught:
        known.challenged(values, answered=answered)
    assert caught.value.state == "unauthorized"
    assert "Circle" not in str(caught.value) + repr(known)


def test_a_stale_nonce_is_answered_again_but_not_for_ever() -> None:
    """A camera whose nonces grow old gets an answer to the new one; one that calls all of them old is given up."""
    known = authenticator()
    known.challenged([MD5], answered=False)
    first = parameters(known.header("PLAY", "x"))["response"]
    known.challenged([MD5.replace("7ypf", "8ypf") + ", stale=TRUE"], answered=True)
    assert parameters(known.header("PLAY", "x"))["response"] != first
    known.accepted()
    for _ in range(3):
        known.challenged([MD5 + ", stale=true"], answered=True)
    with pytest.raises(Failure, match="calls every answer stale"):
        known.challenged([MD5 + ", stale=true"], answered=True)


def test_quotes_in_names_and_realms_survive() -> None:
    """Backslashes and quotes are escaped on the way out and unescaped on the way in."""
    (challenge,) = parse_challenges([r'Digest realm="a \"b\" \\ c", nonce="n"'])
    assert challenge.parameters["realm"] == 'a "b" \\ c'
    known = authenticator('me"\\')
    known.challenged([r'Digest realm="a \"b\" \\ c", nonce="n"'], answered=False)
    assert r'username="me\"\\", realm="a \"b\" \\ c"' in (known.header("PLAY", "x") or "")


def test_challenges_have_bounds() -> None:
    """A camera cannot make us keep, or choose among, any number of them."""
    with pytest.raises(RemoteFault, match="over 16 ways"):
        parse_challenges(["Basic," * 40])
    with pytest.raises(RemoteFault, match="over 8192 characters"):
        parse_challenges(["x" * 9_000])
