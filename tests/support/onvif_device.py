"""An ONVIF camera on loopback that answers what discovery asks: a WS-Discovery probe, and SOAP of two services.

Written from the specifications (ONVIF Core and Media, WS-Discovery), with no line of the adapter in it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" '
    'xmlns:tds="http://www.onvif.org/ver10/device/wsdl" xmlns:trt="http://www.onvif.org/ver10/media/wsdl" '
    'xmlns:ter="http://www.onvif.org/ver10/error" xmlns:tt="http://www.onvif.org/ver10/schema" '
    'xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
    'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><s:Body>%s</s:Body></s:Envelope>'
)
_FAULT = (
    "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Code>"
    '<s:Reason><s:Text xml:lang="en">Sender not authorized</s:Text></s:Reason></s:Fault>'
)


def _service(namespace: str, address: str) -> str:
    return (
        f"<tds:Service><tds:Namespace>{namespace}</tds:Namespace><tds:XAddr>{address}</tds:XAddr>"
        "<tds:Version><tt:Major>2</tt:Major><tt:Minor>0</tt:Minor></tds:Version></tds:Service>"
    )


def _profile(token: str, name: str, width: int, height: int) -> str:
    return (
        f'<trt:Profiles token="{token}" fixed="true"><tt:Name>{name}</tt:Name>'
        f'<tt:VideoEncoderConfiguration token="e{token}"><tt:Name>e</tt:Name><tt:UseCount>1</tt:UseCount>'
        f"<tt:Encoding>H264</tt:Encoding><tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height>"
        "</tt:Resolution><tt:Quality>4</tt:Quality><tt:RateControl><tt:FrameRateLimit>25</tt:FrameRateLimit>"
        "<tt:EncodingInterval>1</tt:EncodingInterval><tt:BitrateLimit>4096</tt:BitrateLimit></tt:RateControl>"
        "<tt:H264><tt:GovLength>50</tt:GovLength><tt:H264Profile>Main</tt:H264Profile></tt:H264><tt:Multicast>"
        "<tt:Address><tt:Type>IPv4</tt:Type><tt:IPv4Address>0.0.0.0</tt:IPv4Address></tt:Address><tt:Port>0</tt:Port>"
        "<tt:TTL>1</tt:TTL><tt:AutoStart>false</tt:AutoStart></tt:Multicast>"
        "<tt:SessionTimeout>PT60S</tt:SessionTimeout></tt:VideoEncoderConfiguration></trt:Profiles>"
    )


class OnvifDevice(asyncio.DatagramProtocol):
    """Listens on two free ports of 127.0.0.1: `search_port` (UDP) and `port` (HTTP)."""

    def __init__(self, *, password: str | None = None) -> None:
        """password: that of the user "viewer"; without it the media service refuses. It is never sent in plain."""
        self.password = password
        self.bodies: list[str] = []
        self.questions = 0
        self.port = self.search_port = 0
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def service(self) -> str:
        return f"http://127.0.0.1:{self.port}/onvif/device_service"

    # -- the search

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert b"NetworkVideoTransmitter" in data
        self.questions += 1
        match = (
            "<d:ProbeMatches><d:ProbeMatch><a:EndpointReference><a:Address>urn:uuid:1</a:Address></a:EndpointReference>"
            "<d:Types>dn:NetworkVideoTransmitter</d:Types><d:Scopes>onvif://www.onvif.org/name/Gate%20North "
            "onvif://www.onvif.org/hardware/X-1 onvif://www.onvif.org/Profile/Streaming</d:Scopes>"
            f"<d:XAddrs>https://127.0.0.1/x {self.service}</d:XAddrs><d:MetadataVersion>1</d:MetadataVersion>"
            "</d:ProbeMatch></d:ProbeMatches>"
        )
        assert self._transport is not None
        for answer in (b"rubbish", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", (_ENVELOPE % match).encode()):
            self._transport.sendto(answer, addr)

    # -- the services

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = (await reader.readexactly(int(length[1]) if length else 0)).decode()
                self.bodies.append(body)
                status, content = self._answer(body)
                answer = (_ENVELOPE % content).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/soap+xml; charset=utf-8\r\n"
                    f"Content-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    def _answer(self, body: str) -> tuple[str, str]:
        if "GetServices" in body:
            device, media = "http://www.onvif.org/ver10/device/wsdl", "http://www.onvif.org/ver10/media/wsdl"
            listed = _service(device, self.service) + _service(media, self.service.replace("device", "media"))
            return "200 OK", f"<tds:GetServicesResponse>{listed}</tds:GetServicesResponse>"
        if self.password is not None and "UsernameToken" not in body:
            return "400 Bad Request", _FAULT
        if "GetProfiles" in body:
            profiles = _profile("p1", "sub", 640, 360) + _profile("p0", "main", 1920, 1080)
            return "200 OK", f"<trt:GetProfilesResponse>{profiles}</trt:GetProfilesResponse>"
        token = re.search(r"ProfileToken>(\w+)<", body)
        assert token is not None
        uri = f"rtsp://viewer:leaked@127.0.0.1:554/live?token={token[1]}&amp;x=1"
        return "200 OK", (
            f"<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>{uri}</tt:Uri><tt:InvalidAfterConnect>false"
            "</tt:InvalidAfterConnect><tt:InvalidAfterReboot>false</tt:InvalidAfterReboot><tt:Timeout>PT0S</tt:Timeout>"
            "</trt:MediaUri></trt:GetStreamUriResponse>"
        )


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[OnvifDevice]:
    """One device until the block is left."""
    device = OnvifDevice(**options)
    server = await asyncio.start_server(device.serve, "127.0.0.1", 0)
    device.port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: device, local_addr=("127.0.0.1", 0)
    )
    device.search_port = transport.get_extra_info("sockname")[1]
    try:
        yield device
    finally:
        transport.close()
        server.close()
