"""Finding ONVIF cameras, with one that answers on loopback."""

from __future__ import annotations

import tomllib

import pytest
from gateway_adapters.rtsp.camera import create
from gateway_adapters.rtsp.discover import Device, discover, parse_matches, without_user
from gateway_adapters.rtsp.native_session import Credentials
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.camera import _toml
from gateway.config import from_dict
from tests.support import onvif_device

PASSWORD = "p w/é"


async def search(device: onvif_device.OnvifDevice, credentials: Credentials | None = None) -> list[Device]:
    return await discover(address=("127.0.0.1", device.search_port), credentials=credentials, wait_s=0.3, timeout_s=20)


async def test_a_camera_is_found_with_all_its_streams() -> None:
    """Asked three times it is listed once, with its streams, and without the password it put into their addresses."""
    async with onvif_device.serving(password=PASSWORD) as device:
        (found,) = await search(device, Credentials("viewer", PASSWORD))
        assert device.questions == 3
        assert not any(PASSWORD in body for body in device.bodies)
    assert (found.service, found.name, found.hardware, found.problem) == (device.service, "Gate North", "X-1", "")
    assert [(each.name, each.width, each.fps) for each in found.profiles] == [("sub", 640, 25), ("main", 1920, 25)]
    assert found.profiles[1].url == "rtsp://127.0.0.1:554/live?token=p0&x=1"


async def test_a_camera_that_tells_nothing_to_strangers() -> None:
    """It is listed, with what it said."""
    async with onvif_device.serving(password=PASSWORD) as device:
        (found,) = await search(device)
    assert found.profiles == []
    assert "not authorized" in found.problem


async def test_what_is_printed_is_configuration() -> None:
    """The largest stream is the one that is configured; the text is TOML that the gateway takes."""
    async with onvif_device.serving() as device:
        (report,) = await create.discover(
            hosts=[f"127.0.0.1:{device.port}"],
            address=None,
            interface=None,
            username=None,
            password=None,
            wait_s=0.1,
            timeout_s=20,
        )
    text = _toml(report, 'me"', None)
    config = from_dict({"data": "d", **tomllib.loads(text.replace("${GATEWAY_CAMERA_PASSWORD}", "secret"))})
    camera = config.cameras["cam-127.0.0.1"]
    assert (camera.url, camera.username) == ("rtsp://127.0.0.1:554/live?token=p0&x=1", 'me"')
    assert "# url = " in text
    nobody = _toml({**report, "profiles": [], "problem": "no answer"}, None, None)
    assert tomllib.loads(nobody) == {}


async def test_nobody_answers() -> None:
    """An empty network is an empty list; a host that is not there is listed with its problem."""
    async with onvif_device.serving() as device:
        port = device.search_port
    assert await discover(address=("127.0.0.1", port), wait_s=0.1) == []
    (found,) = await discover(hosts=[f"127.0.0.1:{port}"], timeout_s=5)
    assert found.problem == "nothing listens at this address (connection refused)"


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_anything_may_answer(data: bytes) -> None:
    """What is no answer is none."""
    assert parse_matches(data) == []


@pytest.mark.parametrize(
    ("url", "clean"),
    [("rtsp://u:p@h:1/x?a=b", "rtsp://h:1/x?a=b"), ("rtsp://h/x", "rtsp://h/x"), ("rtsp://[", "rtsp://[")],
)
def test_user_information_is_cut_out(url: str, clean: str) -> None:
    """Some cameras tell the password in their address."""
    assert without_user(url) == clean
