"""Finds ONVIF cameras: WS-Discovery says who is there, the cameras' own media service what they offer.

The search is one multicast question (WS-Discovery 1.0, April 2005, as ONVIF Core, section 7.3, has it) and needs no
library. GetProfiles and GetStreamUri are SOAP with ONVIF's schemas: the extra ``onvif`` (onvif-zeep-async) does that.
Everybody on the network can answer: what comes is bounded, and shown only as far as it is printable.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from xml.etree import ElementTree as ET

from gateway.errors import SourceError
from gateway_adapters.rtsp.failures import of_system, scrub, shown
from gateway_adapters.rtsp.native_session import Credentials
from gateway_adapters.rtsp.sdp import is_url

MULTICAST = ("239.255.255.250", 3702)
# A question may get lost; whoever answers twice is listed once.
ASKED_TIMES, ASKED_EVERY_S = 3, 0.3
DEVICES_MAX = 1_000
PROFILES_MAX = 16
# Asked for their profiles at once.
CONCURRENT = 16

_SOAP = "http://www.w3.org/2003/05/soap-envelope"
_ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
_DISCOVERY = "http://schemas.xmlsoap.org/ws/2005/04/discovery"
_PROBE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    f'<s:Envelope xmlns:s="{_SOAP}" xmlns:a="{_ADDRESSING}" xmlns:d="{_DISCOVERY}">'
    "<s:Header><a:MessageID>urn:uuid:{id}</a:MessageID>"
    "<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>"
    f"<a:Action>{_DISCOVERY}/Probe</a:Action></s:Header>"
    '<s:Body><d:Probe><d:Types xmlns:n="http://www.onvif.org/ver10/network/wsdl">n:NetworkVideoTransmitter</d:Types>'
    "</d:Probe></s:Body></s:Envelope>"
)
_ONVIF_PORT = 80
_ONVIF_PATH = "/onvif/device_service"


@dataclass
class Profile:
    """One stream that a camera offers. width, height in pixels, fps: as configured in the camera; None: not said."""

    name: str
    url: str
    codec: str = ""
    width: int | None = None
    height: int | None = None
    fps: float | None = None


@dataclass
class Device:
    """One camera. service: its device service's URL. problem: why its profiles are not known, "" if they are."""

    service: str
    name: str = ""
    hardware: str = ""
    profiles: list[Profile] = field(default_factory=list)
    problem: str = ""


async def discover(
    *,
    hosts: Sequence[str] = (),
    address: tuple[str, int] = MULTICAST,
    interface: str | None = None,
    credentials: Credentials | None = None,
    wait_s: float = 3.0,
    timeout_s: float = 10.0,
) -> list[Device]:
    """The cameras that answer, by address. Raises SourceError when nobody can be asked.

    hosts: ask these (host or host:port) instead of the network. address: where the question goes. interface: the local
    address from which. credentials: for the cameras' services; without, many tell no addresses. wait_s: for answers;
    timeout_s: for each camera's service.
    """
    onvif_camera = _onvif()
    if hosts:
        found = [Device(f"http://{host}{_ONVIF_PATH}") for host in hosts]
    else:
        found = await _search(address, interface, wait_s)
    places = asyncio.Semaphore(CONCURRENT)
    known = credentials or Credentials()
    await asyncio.gather(*(_ask(onvif_camera, device, known, places, timeout_s) for device in found))
    return sorted(found, key=lambda device: device.service)


# -- who is there ------------------------------------------------------------------------------------------------------


class _Search(asyncio.DatagramProtocol):
    """Collects answers."""

    def __init__(self) -> None:
        self.found: dict[str, Device] = {}

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        for device in parse_matches(data):
            if len(self.found) < DEVICES_MAX:
                self.found.setdefault(device.service, device)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there: the same as no answer."""


async def _search(address: tuple[str, int], interface: str | None, wait_s: float) -> list[Device]:
    loop = asyncio.get_running_loop()
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        asking.setblocking(False)
        asking.bind((interface or ("127.0.0.1" if address[0].startswith("127.") else "0.0.0.0"), 0))  # noqa: S104
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        if interface:
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        transport, search = await loop.create_datagram_endpoint(_Search, sock=asking)
    except OSError as error:
        asking.close()
        raise SourceError(f"Cameras cannot be searched for from {interface or 'here'}: {error.strerror}.") from error
    try:
        question = _PROBE.replace("{id}", str(uuid.uuid4())).encode()
        for _ in range(ASKED_TIMES):
            transport.sendto(question, address)
            await asyncio.sleep(min(ASKED_EVERY_S, wait_s / ASKED_TIMES))
        await asyncio.sleep(max(0.0, wait_s - ASKED_TIMES * ASKED_EVERY_S))
    finally:
        transport.close()
    return list(search.found.values())


def parse_matches(data: bytes) -> list[Device]:
    """The devices in one answer; none in what is no answer."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # no answer has either; entities could grow without bound
        return []
    try:
        root = ET.fromstring(data)  # noqa: S314  # see above
    except (ET.ParseError, ValueError, LookupError):
        return []
    found = []
    for match in root.iter(f"{{{_DISCOVERY}}}ProbeMatch"):
        services = (match.findtext(f"{{{_DISCOVERY}}}XAddrs") or "").split()
        # Cameras list an IPv6 or HTTPS address, too; the first plain one is sure to work.
        service = next((each for each in services if _is_service(each)), None)
        if service is not None:
            scopes = (match.findtext(f"{{{_DISCOVERY}}}Scopes") or "").split()
            found.append(Device(service, _scope(scopes, "name"), _scope(scopes, "hardware")))
    return found


def _is_service(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return False


def _scope(scopes: list[str], kind: str) -> str:
    prefix = f"onvif://www.onvif.org/{kind}/"
    return next((shown(unquote(each.removeprefix(prefix))) for each in scopes if each.startswith(prefix)), "")


# -- what they offer ---------------------------------------------------------------------------------------------------


def _onvif() -> Any:
    """The library's camera class. Raises SourceError when it is not installed."""
    try:
        with _logging_untouched():
            from onvif import ONVIFCamera
    except ModuleNotFoundError as error:
        raise SourceError(
            f"Discovering cameras needs the Python package {error.name!r}; 'pip install gateway[onvif]' brings it."
        ) from error
    logging.getLogger("onvif").setLevel(logging.CRITICAL)
    return ONVIFCamera


@contextmanager
def _logging_untouched() -> Iterator[None]:
    """The library sets up the root logger when it is imported."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


async def _ask(
    onvif_camera: Any, device: Device, credentials: Credentials, places: asyncio.Semaphore, timeout_s: float
) -> None:
    """Fill in a device's profiles, or what kept us from it."""
    parts = urlsplit(device.service)
    async with places:
        user, password = credentials.username or "", credentials.password or ""  # the library fails on None
        camera = onvif_camera(parts.hostname or "", parts.port or _ONVIF_PORT, user, password)
        try:
            async with asyncio.timeout(timeout_s):
                await camera.update_xaddrs()
                device.profiles = await _profiles(camera, "" if user else "authless_")
        except TimeoutError:
            device.problem = f"no answer within {timeout_s:g} s"
        except OSError as error:
            device.problem = of_system(error.errno, shown(scrub(str(error), credentials.password))).cause
        except Exception as error:  # noqa: BLE001  # of a library above three others: whatever a device can cause
            device.problem = shown(scrub(str(error), credentials.password)) or type(error).__name__
        finally:
            await camera.close()


async def _profiles(camera: Any, prefix: str) -> list[Profile]:
    """prefix: of the library's names for the operations as somebody, or as nobody."""
    media = await camera.create_media_service()
    get_profiles, get_uri = getattr(media, f"{prefix}GetProfiles"), getattr(media, f"{prefix}GetStreamUri")
    found = []
    for each in (await get_profiles() or [])[:PROFILES_MAX]:
        setup = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}
        uri = (await get_uri({"StreamSetup": setup, "ProfileToken": each.token})).Uri
        url = without_user(str(uri).strip())
        if is_url(url):
            found.append(_profile(each, url))
    return found


def _profile(given: Any, url: str) -> Profile:
    encoder = getattr(given, "VideoEncoderConfiguration", None)
    resolution, rate = getattr(encoder, "Resolution", None), getattr(encoder, "RateControl", None)
    return Profile(
        name=shown(str(given.Name or given.token)),
        url=url,
        codec=shown(str(getattr(encoder, "Encoding", "") or "")),
        width=getattr(resolution, "Width", None),
        height=getattr(resolution, "Height", None),
        fps=getattr(rate, "FrameRateLimit", None),
    )


def without_user(url: str) -> str:
    """Some cameras put user name and password into the address they tell."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
