"""A camera of GStreamer's gst-rtsp-server; a program of its own, run with the system's Python (Debian: python3-gi).

    /usr/bin/python3 gst_rtsp_server.py [--codec h264|h265|jpeg] [--user U --password P] [--audio] [--fps 25]
    /usr/bin/python3 gst_rtsp_server.py --check     # exit code 0 when all it needs is installed

Listens on a free port of 127.0.0.1, serves /cam, prints one line ``port N`` when ready, ends when its input closes. It
is the independent implementation of a camera that the adapter is tested against: no line of Gateway is in it.
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - versions must be chosen before

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} ! rtph264pay name=pay0 pt=96",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} ! h265parse ! "
    "rtph265pay name=pay0 pt=96",
    "jpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}
ELEMENTS = [
    *("videotestsrc", "x264enc", "rtph264pay", "x265enc", "h265parse", "rtph265pay", "jpegenc", "rtpjpegpay"),
    *("audiotestsrc", "alawenc", "rtppcmapay"),
]
AUDIO = " audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--audio", action="store_true")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    Gst.init(None)
    if arguments.check:
        sys.exit(", ".join(f"no {name}" for name in ELEMENTS if Gst.ElementFactory.find(name) is None) or 0)
    caps = f"video/x-raw,format=I420,width=320,height=240,framerate={arguments.fps}/1"
    encoder = ENCODERS[arguments.codec].format(gop=arguments.fps)
    video = f"videotestsrc is-live=true pattern=ball ! {caps} ! {encoder}"
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {video}{AUDIO if arguments.audio else ''} )")
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    if arguments.user:
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_digest(arguments.user, arguments.password, token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("port", server.get_bound_port(), flush=True)
    loop = GLib.MainLoop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
    loop.run()


main()
