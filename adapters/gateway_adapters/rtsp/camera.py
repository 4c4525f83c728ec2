"""The source "camera": which engine carries it. The source's promises are the same for both.

"native" (the default for rtsp:// over TCP): our own client, all cameras on one thread. "pyav": libav, a thread for
each; for what the native engine does not speak (rtsps, RTP over UDP, HTTP) and for odd cameras.
"""

from __future__ import annotations

from gateway.config import CameraConfig
from gateway.ingest.source import Source, SourceContext


def create(name: str, config: CameraConfig, context: SourceContext) -> Source:
    """Entry point of kind "camera"."""
    if config.engine_used == "pyav":
        # Not before it is asked for: libav takes time and memory.
        from gateway_adapters.rtsp.pyav_camera import PyavCamera

        return PyavCamera(name, config, context)
    from gateway_adapters.rtsp.native_camera import NativeCamera

    return NativeCamera(name, config, context)
