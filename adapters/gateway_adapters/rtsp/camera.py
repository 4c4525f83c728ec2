"""The source "camera": which engine carries it. The source's promises are the same for both.

"native" (the default for rtsp:// over TCP): our own client, all cameras on one thread. "pyav": libav, a thread for
each; for what the native engine does not speak (rtsps, RTP over UDP, HTTP) and for odd cameras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gateway.config import CameraConfig
from gateway.ingest.source import Source, SourceContext


class CameraFactory:
    """What the entry point of kind "camera" names. Imports late: a gateway without an engine's cameras needs none."""

    def __call__(self, name: str, config: CameraConfig, context: SourceContext) -> Source:
        """The source that records this camera."""
        if config.engine_used == "pyav":
            # Not before it is asked for: libav takes time and memory.
            from gateway_adapters.rtsp.pyav_camera import PyavCamera

            return PyavCamera(name, config, context)
        from gateway_adapters.rtsp.native_camera import NativeCamera

        return NativeCamera(name, config, context)

    async def probe(self, config: CameraConfig, *, seconds: float) -> dict[str, Any]:
        """See `gateway_adapters.rtsp.probe`."""
        from gateway_adapters.rtsp.probe import probe

        return await probe(config, seconds=seconds)

    async def discover(
        self,
        *,
        hosts: Sequence[str],
        address: tuple[str, int] | None,
        interface: str | None,
        username: str | None,
        password: str | None,
        wait_s: float,
        timeout_s: float,
    ) -> list[dict[str, Any]]:
        """See `gateway_adapters.rtsp.discover`."""
        from gateway_adapters.rtsp.discover import MULTICAST, discover
        from gateway_adapters.rtsp.native_session import Credentials

        found = await discover(
            hosts=hosts,
            address=address or MULTICAST,
            interface=interface,
            credentials=Credentials(username, password),
            wait_s=wait_s,
            timeout_s=timeout_s,
        )
        return [dataclasses.asdict(device) for device in found]


create = CameraFactory()
